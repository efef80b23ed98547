"""The text column: where bars, ticks and swatches are, and that names give way."""

import numpy as np
import pytest

from fx_d2.visualization import column
from fx_d2.visualization.column import ROW, Row, paint_rows, write_rows
from fx_d2.visualization.page import Page

RIGHT = 400


def painted(*rows: Row) -> np.ndarray:
    canvas = np.zeros((ROW * len(rows), RIGHT + 10, 3), np.uint8)
    paint_rows(canvas, rows, (0, 0), RIGHT)
    return canvas


def lit(canvas: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """Columns in which a colour is."""
    return np.flatnonzero((canvas == np.round(255 * np.array(color))).all(-1).any(0))


def test_bars_are_as_long_as_their_shares_and_ticks_stand_on_them() -> None:
    lengths = [len(lit(painted(Row("x", bar=share)), column.BAR)) for share in (0.0, 0.5, 1.0, 1.7)]
    assert lengths == [0, 55, 110, 110] and not painted(Row("x")).any() and not painted(Row("x", bar=np.nan)).any()
    full = lit(painted(Row("x", bar=1.0)), column.BAR)
    for place, end in ((0.0, full[0]), (1.0, full[-1])):
        tick = lit(painted(Row("x", bar=0.5, tick=place)), (1, 1, 1))
        assert len(tick) == 2 and end in tick
    assert lit(painted(Row("x"), Row("y", swatch=(1, 0, 0))), (1, 0, 0)).tolist() == list(range(14))


def test_a_name_is_cut_only_where_something_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(Page, "text", lambda self, text, *place, **style: written.append(text))
    long = "reaches its operating point, which is long"
    write_rows(Page(painted(Row(""), Row(""))), [Row(long), Row(long, "0.5")], (0, 0), RIGHT)
    names = [text for text in written if text.startswith("reaches")]
    assert names == [long, long[: column.NAME - 1] + "…"]
