"""C++ files of plain functions, compiled on first use by the system's compiler.

torch.utils.cpp_extension builds modules against torch's headers. That takes half a minute, needs Ninja and Python's
headers, and leaves a stale lock if the process is killed. Functions of pointers and numbers need none of this: they
compile in a few seconds and load with ctypes.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

# Reproducible arithmetic: FMA only where the source asks for it, no reordering, NaN and infinity preserved.
# -march=native is safe because the CPU's features are part of the cache key.
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_TIMEOUT = 300.0


def load_library(source: Path) -> tuple[ctypes.CDLL, Path]:
    """Load the library of a C++ file, compiling it unless it is cached.

    Libraries are cached in $TORCH_EXTENSIONS_DIR, by default ~/.cache/torch_extensions as for torch's own extensions.
    The file name is a hash of the source, the compiler flags and the CPU's features, so different machines may share a
    home directory. Concurrent processes are safe: each builds in a temporary folder and renames the result into place.

    Returns:
        The library and its file.

    Raises:
        FXError: there is no compiler ($CXX, c++, g++ or clang++), compilation fails, or the library cannot be written
            or loaded.
    """
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser() / "fx_d2"
    key = hashlib.sha256("\0".join((source.read_text(encoding="utf-8"), *_FLAGS, _cpu_features())).encode())
    path = folder / f"{source.stem}_{key.hexdigest()[:16]}.so"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / path.name
                _compile(source, built)
                built.replace(path)
        return ctypes.CDLL(str(path)), path
    except OSError as error:
        raise FXError(
            f"{source.name} has no usable library in {folder} ({error}): set TORCH_EXTENSIONS_DIR to a writable "
            "folder, or delete the library if it is damaged"
        ) from error


def _compile(source: Path, target: Path) -> None:
    command = [*_compiler(source), *_FLAGS, str(source), "-o", str(target)]
    logger.info("compiling %s, once per CPU type: %s", source.name, shlex.join(command[: -len(_FLAGS)]))
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise FXError(f"{command[0]} did not compile {source.name} within {_TIMEOUT:.0f} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error" in line), lines[-1])
        raise FXError(f"{command[0]} cannot compile {source.name}: {reason}")
    logger.info("compiled %s in %.1f s", source.name, time.perf_counter() - start)


def _compiler(source: Path) -> list[str]:
    """Command of the first compiler found."""
    for candidate in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise FXError(f"{source.name} needs a C++ compiler: install g++ or set CXX, or choose another sampler")


def _cpu_features() -> str:
    """The CPU properties that -march=native depends on, as text."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor(), platform.node()]
    found = {line for line in lines if line.split("\t")[0].strip() in ("flags", "Features", "model name", "CPU part")}
    return "\n".join([platform.machine(), *sorted(found or lines)])
