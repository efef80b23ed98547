"""Checkpoint files: atomic writes, integrity checks, discovery and rotation."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"

BEST = "model_best_*.pth"
"""File names of the best checkpoints."""

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
_TEMPORARY = ".tmp"
_DAMAGED = ".damaged"


def path_of(folder: Path, iteration: int) -> Path:
    """The checkpoint written after a 0-based iteration."""
    return folder / f"model_{iteration:07d}.pth"


def best_name(pattern: str) -> str:
    """File name of the best checkpoint for a pattern of SOLVER.CHECKPOINT_BEST."""
    return BEST.replace("*", re.sub("[^A-Za-z0-9]+", "_", pattern).strip("_"))


def numbered(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by iteration, in ascending order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("model_*.pth"))
    return dict(sorted((int(match.group(1)), path) for match, path in found if match))


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: at any time, even after a crash, `path` is the old or the complete new file.

    Raises:
        FXError: the disk is full or not writable; existing files are left unchanged.
    """
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        with temporary.open("wb") as stream:
            torch.save(dict(content), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises some OSErrors as RuntimeError
        reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
        with contextlib.suppress(OSError):
            reason += f"; {shutil.disk_usage(path.parent).free / 1e9:.2f} GB free"
            temporary.unlink(missing_ok=True)
        raise FXError(
            f"checkpoint {path} could not be written ({reason}): free some space, or choose another folder"
        ) from error


def write_new(content: Mapping[str, Any], path: Path) -> None:
    """`write` for tools, which also creates the folder; a run's folder must exist already. Raises as `write`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FXError(f"checkpoint {path} could not be written ({path.parent}: {error.strerror})") from error
    write(content, path)


def link(source: Path, name: str) -> None:
    """Give a checkpoint a second name in its folder, exempt from rotation: a hard link, or else a copy.

    Raises:
        FXError: neither can be created.
    """
    temporary = source.with_name(name + _TEMPORARY)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
        os.replace(temporary, source.with_name(name))
        _sync_folder(source.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FXError(f"checkpoint {source.with_name(name)} could not be written ({error.strerror})") from error


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(path: Path) -> str:
    """What is wrong with a checkpoint file, or "". Reads all of it, as `torch.load` does not verify checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return str(error) or type(error).__name__
    return f"wrong checksum of {record}" if record else ""


def newest_sound(folder: Path, *, set_aside: bool = True) -> Path | None:
    """The latest intact checkpoint, or None if the folder has no checkpoints; damaged ones are logged as warnings.

    Args:
        folder: of a run.
        set_aside: rename damaged checkpoints if there is an intact one.

    Raises:
        FXError: all checkpoints are damaged. They keep their names, so a restarted job does not mistake the folder for
            an empty one.
    """
    found = numbered(folder)
    damaged: list[Path] = []
    for path in reversed(found.values()):
        wrong = damage(path)
        if wrong:
            damaged.append(path)
            logger.warning("checkpoint %s is damaged (%s), trying the previous one", path, wrong)
            continue
        for bad in damaged if set_aside else ():
            aside = bad.with_name(bad.name + _DAMAGED)
            os.replace(bad, aside)
            logger.warning("%s renamed to %s", bad, aside.name)
        return path
    if found:
        raise FXError(f"--resume: all {len(found)} checkpoints in {folder} are damaged: use another OUTPUT_DIR")
    return None


def remove_leftovers(folder: Path) -> None:
    """Delete incomplete files left by a process that was killed while writing."""
    for path in folder.glob(f"model_*.pth{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def rotate(folder: Path, *, keep: int, every: int) -> None:
    """Delete numbered checkpoints except the last `keep` and, if `every` > 0, those after each `every` iterations."""
    found = numbered(folder)
    for iteration in list(found)[:-keep]:
        if not every or (iteration + 1) % every:
            found[iteration].unlink(missing_ok=True)
