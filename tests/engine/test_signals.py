import os
import signal

import pytest

from fx_d2.data.loaders import STOP_SIGNALS
from fx_d2.engine.signals import EXIT_CODE, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_and_not_obeyed_until_restored(number: int) -> None:
    caught: list[int] = []
    before = signal.signal(number, lambda n, frame: caught.append(n))
    try:
        request = StopRequest()
        request.install()
        assert request.received == ""
        os.kill(os.getpid(), number)
        assert request.received == signal.Signals(number).name and not caught
        request.restore()
        os.kill(os.getpid(), number)
        assert caught == [number]
    finally:
        signal.signal(number, before)


def test_the_exit_code_is_that_of_a_temporary_failure() -> None:
    assert EXIT_CODE == os.EX_TEMPFAIL
