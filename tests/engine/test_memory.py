import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fx_d2.engine import memory
from fx_d2.engine.memory import PeakMemory, memory_used

CPU = torch.device("cpu")
MB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


def _pages(megabytes: int) -> np.ndarray:
    """Memory that the process did not have before, as no allocator hands it out."""
    pages = np.frombuffer(mmap.mmap(-1, megabytes * MB), np.uint8)
    pages.fill(1)
    return pages


@linux
def test_a_peak_is_seen_after_it_has_gone_and_forgotten_at_reset() -> None:
    peak = PeakMemory(CPU)
    peak.reset()
    before = peak.read()
    _pages(200)
    assert peak.read() - before > 150 * MB
    peak.reset()
    # Beside what is held now: an allocator may keep what was given back.
    assert "since" in peak.source or peak.read() - memory_used(CPU) < 100 * MB


@linux
def test_what_is_held_is_counted_now() -> None:
    before = memory_used(CPU)
    held = _pages(200)
    assert memory_used(CPU) - before > 150 * MB
    assert held.all()


def test_without_proc_the_peak_is_that_since_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    peak = PeakMemory(CPU)
    peak.reset()
    assert peak.source.endswith("since its start")
    assert peak.read() > 50 * MB and memory_used(CPU) > 50 * MB
