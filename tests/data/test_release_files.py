"""Tables, json files and image files of a release, and their faults."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fx_d2.data.release_files import find_file, index_files, read_json, read_rows
from fx_d2.structures import FXError


def test_rows_are_stripped_and_bound_by_name(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(b'\xef\xbb\xbfid, code ,other\r\n a , 1 2,"x, y"\r\n\r\nb,-1,\r\n')
    rows = list(read_rows(file, ("code", "id"), optional=("absent",)))
    assert rows == [{"code": "1 2", "id": "a", "absent": ""}, {"code": "-1", "id": "b", "absent": ""}]


def test_gzip_and_long_cells_are_read(tmp_path: Path) -> None:
    file = tmp_path / "table.csv.gz"
    code = "1 2 " * 100_000
    file.write_bytes(gzip.compress(f"id,code\na,{code}\n".encode()))
    assert list(read_rows(file, ("id", "code"))) == [{"id": "a", "code": code.strip()}]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FXError, match=r"table\.csv\.gz: cannot be read as a table"):
        list(read_rows(file, ("id",)))
    file.write_bytes(file.read_bytes()[:20] + b"\xff" * 100)
    with pytest.raises(FXError, match=r"table\.csv\.gz: cannot be read as a table .*decompressing"):
        list(read_rows(file, ("id",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,b\n1,2\n", "no column 'a'; it has"),
        ("a,a\n1,2\n", "column 'a' occurs twice"),
        ("a,b\n1\n", "row 2 has 1 cells, but the header has 2"),
        ("a\n", "has no rows"),
        ("", "no column 'a'"),
        ("a;b\n1;2\n", "cells must be separated by commas"),
        ("a\tb\n1\t2\n", "cells must be separated by commas"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(FXError, match=rf"table\.csv: {message}"):
        list(read_rows(file, ("a",)))


def test_a_table_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes("a\nMüller\n".encode("latin-1"))
    with pytest.raises(FXError, match=r"table\.csv: not UTF-8 text after row 1 .*: save it as UTF-8$"):
        list(read_rows(tmp_path / "table.csv", ("a",)))


def test_a_missing_table_and_broken_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(FXError, match="not found"):
        list(read_rows(tmp_path / "none.csv", ("a",)))
    with pytest.raises(FXError, match="not found"):
        read_json(tmp_path / "none.json", dict)
    (tmp_path / "a.json").write_text("[1, 2")
    with pytest.raises(FXError, match=r"a\.json: not readable json"):
        read_json(tmp_path / "a.json", list)
    (tmp_path / "a.json").write_text("[1, 2]")
    assert read_json(tmp_path / "a.json", list) == [1, 2]
    with pytest.raises(FXError, match="must hold an object, not list"):
        read_json(tmp_path / "a.json", dict)


def test_files_are_indexed_by_name_without_ending(tmp_path: Path) -> None:
    for name in ("a.PNG", "sub/b.png", "1.2.840", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert index_files(tmp_path, (".png",)) == {"a": tmp_path / "a.PNG", "b": tmp_path / "sub" / "b.png"}
    assert set(index_files(tmp_path, (".png", ""))) == {"a", "b", "1.2.840", "notes.txt"}
    with pytest.raises(FXError, match=r"contains no \.dcm"):
        index_files(tmp_path, (".dcm",))
    with pytest.raises(FXError, match="no such folder"):
        index_files(tmp_path / "none", (".dcm",))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(FXError, match="two files of the same image"):
        index_files(tmp_path, (".png",))


def test_a_file_is_found_at_any_depth_but_only_once(tmp_path: Path) -> None:
    with pytest.raises(FXError, match=r"a\.csv or b\.csv: not found"):
        find_file(tmp_path, ("a.csv", "b.csv"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.csv").write_text("")
    assert find_file(tmp_path, ("a.csv", "b.csv")) == tmp_path / "deep" / "b.csv"
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(FXError, match="2 such files"):
        find_file(tmp_path, ("a.csv", "b.csv"))


def test_links_are_followed(tmp_path: Path) -> None:
    """A release may be spread over disks; a link to nothing is no file."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "b.png").write_bytes(b"")
    (tmp_path / "disk" / "b.csv").write_text("")
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "release" / "a.png").symlink_to(tmp_path / "disk" / "b.png")
    (tmp_path / "release" / "c.png").symlink_to(tmp_path / "none")
    release = tmp_path / "release"
    assert index_files(release, (".png",)) == {"a": release / "a.png", "b": release / "images" / "b.png"}
    assert find_file(release, ("b.csv",)) == release / "images" / "b.csv"
