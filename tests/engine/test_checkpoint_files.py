import errno
import io
import logging
import os
import stat
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fx_d2.engine import checkpoint_files
from fx_d2.engine.checkpoint_files import (
    best_name,
    damage,
    link,
    newest_sound,
    numbered,
    path_of,
    remove_leftovers,
    rotate,
    write,
    write_new,
)
from fx_d2.structures import FXError


def _write(folder: Path, *iterations: int) -> None:
    for iteration in iterations:
        write({"model": {"x": torch.full((4000,), float(iteration))}}, path_of(folder, iteration))


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_written_files_are_sound_and_found_in_order(tmp_path: Path) -> None:
    _write(tmp_path, 12, 3, 12345678)
    for name in ("model_final.pth", "model_best_x.pth", "model_0000001.pth.tmp", "other_0000001.pth"):
        (tmp_path / name).write_bytes(b"")
    assert list(numbered(tmp_path)) == [3, 12, 12345678]
    assert not damage(path_of(tmp_path, 3))
    assert torch.equal(torch.load(newest_sound(tmp_path))["model"]["x"], torch.full((4000,), 12345678.0))


@pytest.mark.parametrize("kind", ["bit", "short", "empty"])
def test_a_damaged_file_is_set_aside_and_the_one_before_taken(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, 1, 2)
    last = path_of(tmp_path, 2)
    if kind == "bit":
        _flip_a_bit(last)
        torch.load(last)  # which notices nothing
    else:
        last.write_bytes(last.read_bytes()[:5000] if kind == "short" else b"")
    with caplog.at_level(logging.WARNING):
        assert newest_sound(tmp_path) == path_of(tmp_path, 1)
    assert "model_0000002.pth is damaged" in caplog.text
    assert (tmp_path / "model_0000002.pth.damaged").is_file() and list(numbered(tmp_path)) == [1]
    # With none left, the folder must not come to look like an empty one.
    _flip_a_bit(path_of(tmp_path, 1))
    for _ in range(2):
        with pytest.raises(FXError, match="all 1 checkpoints .* are damaged"):
            newest_sound(tmp_path)


def test_damage_without_words_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1)
    monkeypatch.setattr(checkpoint_files.zipfile, "ZipFile", mock.Mock(side_effect=EOFError()))
    assert damage(path_of(tmp_path, 1))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_sound(tmp_path) is None


class _Full(io.FileIO):
    """A file on a disk with room for 3000 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 3000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1)
    before = path_of(tmp_path, 1).read_bytes()
    monkeypatch.setattr(Path, "open", lambda self, mode: _Full(self, mode.replace("b", "")))
    with pytest.raises(FXError, match=r"model_0000001\.pth could not be written.*GB free.*another folder"):
        _write(tmp_path, 1)
    assert path_of(tmp_path, 1).read_bytes() == before
    assert os.listdir(tmp_path) == ["model_0000001.pth"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its name is there before anything else happens: a power cut leaves the old file or the new one."""
    events, replace = [], os.replace

    def sync(place: int) -> None:
        found = os.fstat(place)
        events.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("name") or replace(*paths))
    _write(tmp_path, 1)
    assert events == [path_of(tmp_path, 1).stat().st_size, "name", "folder"]
    link(path_of(tmp_path, 1), "model_final.pth")
    assert events[3:] == ["name", "folder"]


def test_a_tool_s_checkpoint_gets_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.pth"
    write_new({}, path)
    assert not damage(path)


def test_the_name_of_a_pattern_s_best() -> None:
    assert best_name("*/cls/auroc*") == "model_best_cls_auroc.pth"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FXError, match="could not be written"):
        write({}, tmp_path / "file" / "model_0000001.pth")


def test_rotation_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    _write(tmp_path, *range(12))
    rotate(tmp_path, keep=2, every=4)
    assert list(numbered(tmp_path)) == [3, 7, 10, 11]
    rotate(tmp_path, keep=1, every=0)
    assert list(numbered(tmp_path)) == [11]


def test_a_second_name_outlives_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1, 2)
    os.link(path_of(tmp_path, 2), tmp_path / "model_best_x.pth.tmp")  # of a run that was killed just there
    link(path_of(tmp_path, 1), "model_best_x.pth")
    assert path_of(tmp_path, 2).read_bytes() != path_of(tmp_path, 1).read_bytes()
    assert (tmp_path / "model_best_x.pth").stat().st_nlink == 2
    rotate(tmp_path, keep=1, every=0)
    assert not damage(tmp_path / "model_best_x.pth")

    def refuse(*paths: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(checkpoint_files.os, "link", refuse)
    link(path_of(tmp_path, 2), "model_best_x.pth")
    assert (tmp_path / "model_best_x.pth").read_bytes() == path_of(tmp_path, 2).read_bytes()


def test_a_second_name_without_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1)

    def fill(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_files.os, "link", mock.Mock(side_effect=OSError(errno.EPERM, "no links here")))
    monkeypatch.setattr(checkpoint_files.shutil, "copyfile", fill)
    with pytest.raises(FXError, match=r"model_best_x\.pth"):
        link(path_of(tmp_path, 1), "model_best_x.pth")
    assert os.listdir(tmp_path) == ["model_0000001.pth"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    (tmp_path / "model_0000002.pth.tmp").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["model_0000001.pth"]
