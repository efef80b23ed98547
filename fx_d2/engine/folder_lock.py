"""One training at a time in an OUTPUT_DIR."""

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
"""The file in OUTPUT_DIR that is locked. It stays, empty; only the lock on it means something."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep a folder for this training while the block runs. A collective call; the main process has the lock.

    The lock ends with the process, however it ends. A file system without locks is used without.

    Args:
        folder: exists.

    Raises:
        FXError: another process trains there.
    """
    held: list[int] = []
    on_first(lambda: held.append(_locked(folder)))
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _locked(folder: Path) -> int:
    """Descriptor of the locked file."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Not flock: loader workers would inherit it, and keep it for seconds after a kill of this process.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise FXError(
                f"OUTPUT_DIR {folder}: another training runs there: wait until it ends, or choose another OUTPUT_DIR"
            ) from error
        logger.debug("OUTPUT_DIR %s cannot be locked, training without a lock: %s", folder, error)
    return descriptor
