"""Mapping over images in processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fx_d2.data.parallel import map_images
from fx_d2.structures import FXError


def work(number: int) -> tuple[int, int]:
    if number < 0:
        os._exit(1)
    return number * number, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int) -> None:
    results = list(map_images(work, range(100), workers=workers, name="x"))
    assert [square for square, _ in results] == [i * i for i in range(100)]
    assert ({pid for _, pid in results} == {os.getpid()}) == (workers == 0)


def test_a_worker_that_dies_is_an_error() -> None:
    """It left the others waiting for ever."""
    with pytest.raises(FXError, match="x: a worker process died"):
        list(map_images(work, [1, 2, -1, *range(100)], workers=2, name="x"))


def leave_a_byte(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b".")
    time.sleep(0.005)


def test_who_stops_listening_does_not_wait_for_the_rest(tmp_path: Path) -> None:
    """As after the first fault of a release."""
    for _ in map_images(leave_a_byte, [tmp_path / "calls"] * 10_000, workers=2, name="x"):
        break
    assert 0 < (tmp_path / "calls").stat().st_size < 2_000
