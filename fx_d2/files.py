"""Writing files whole."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part of it; creates the folder.

    The content goes to a temporary file in the same folder, which is then renamed. It is not flushed to disk: after a
    power failure the file can be empty (checkpoints are flushed, see `engine.checkpoint_files`).

    Args:
        path: the file.
        content: bytes, or text to be written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
