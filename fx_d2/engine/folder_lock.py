"""A lock that allows one training run at a time in an OUTPUT_DIR."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fx_d2.engine.distributed import on_first
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""The lock file in OUTPUT_DIR. It remains there, empty; only the lock on it matters."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this training run while the block runs. A collective call; rank 0 holds the lock.

    The lock is released when the process ends, in whatever way. On a file system without locks, training goes unlocked.

    Args:
        folder: an existing folder.

    Raises:
        FXError: another training run holds the lock, or the lock file cannot be opened.
    """
    held: list[int] = []
    on_first(lambda: held.append(_locked(folder)))
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _locked(folder: Path) -> int:
    """Lock the file and return its descriptor."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FXError(f"OUTPUT_DIR {folder}: {LOCK} in it cannot be opened for writing ({error.strerror})") from error
    try:
        # Not flock: loader workers would inherit the lock and hold it for seconds after this process is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise FXError(
                f"OUTPUT_DIR {folder}: another training run is active there: wait until it ends, or choose another "
                "OUTPUT_DIR"
            ) from error
        logger.debug("OUTPUT_DIR %s cannot be locked, training without a lock: %s", folder, error)
    return descriptor
