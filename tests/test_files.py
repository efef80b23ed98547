from pathlib import Path

import pytest

from fx_d2.files import write_atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, "new \N{CHECK MARK}")
    assert path.read_text(encoding="utf-8") == "new \N{CHECK MARK}"

    def fail(temporary: str, target: Path) -> None:
        assert Path(temporary).parent == target.parent  # on one disk
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "half")
    assert path.read_text(encoding="utf-8") == "new \N{CHECK MARK}"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"\x00\r\n\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\r\n\xff"
