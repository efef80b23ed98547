"""Signals that ask a run to stop: what a cluster sends before it takes the machine away."""

from __future__ import annotations

import signal
import types
from typing import Any

from fx_d2.data.loaders import STOP_SIGNALS

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: stopped at a step's end by one of STOP_SIGNALS, saved; start again with --resume."""


class StopRequest:
    """Remembers that one of STOP_SIGNALS came, instead of dying of it.

    Attributes:
        received: name of the signal that came, or "".
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[Any, Any] = {}

    def install(self) -> None:
        """Begin to listen."""
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def restore(self) -> None:
        """Put back what the signals did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
