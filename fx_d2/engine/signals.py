"""Signals that request a run to stop, as sent by a cluster before it reclaims the machine."""

from __future__ import annotations

import signal
import types
from typing import Any

from fx_d2.data.loaders import STOP_SIGNALS

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: stopped after a step by one of STOP_SIGNALS and saved; continue with --resume."""


class StopRequest:
    """Records that one of STOP_SIGNALS was received, instead of terminating.

    Attributes:
        received: name of the signal, or "".
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[Any, Any] = {}

    def install(self) -> None:
        """Install the handlers."""
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
