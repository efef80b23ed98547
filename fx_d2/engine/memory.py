"""Current and peak memory usage of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Written to clear_refs, this resets the peak resident set size on Linux; see proc(5)."""


class PeakMemory:
    """Peak memory since `reset`.

    On a GPU: of torch's allocator. On a CPU: the resident memory of the whole process, including code, libraries and
    images. Only Linux can reset this peak; elsewhere it is the peak since the process started.

    Attributes:
        source: what is measured, for display.
    """

    def __init__(self, device: torch.device) -> None:
        """device: of the model."""
        self._device = device
        self._proc = _status("VmHWM") is not None
        if device.type == "cuda":
            self.source = "torch.cuda.max_memory_allocated"
        else:
            self.source = "resident memory of the process" + ("" if self._proc else " since its start")

    def reset(self) -> None:
        """Reset the peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._proc:
            try:
                _CLEAR_REFS.write_text(_RESET_PEAK)
            except OSError:  # not permitted in some containers
                self._proc = False
                self.source = "resident memory of the process since its start"

    def read(self) -> int:
        """The peak in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _status("VmHWM") if self._proc else None
        return _since_start() if peak is None else peak


def memory_used(device: torch.device) -> int:
    """Bytes: on a GPU the peak of torch's allocator, on a CPU the current resident memory (without /proc, its peak).

    Neither synchronises with the device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    now = _status("VmRSS")
    return _since_start() if now is None else now


def _since_start() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int | None:
    """An entry of /proc/self/status in bytes, or None if it is not available."""
    if not _STATUS.is_file():
        return None
    match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None
