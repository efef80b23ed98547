"""Labels of the report labellers."""

from __future__ import annotations

import pytest

from fx_d2.data.report_labels import read_labels
from fx_d2.structures import FXError


def test_by_name_and_in_the_asked_order() -> None:
    row = {"Edema": "-1.0", "Fracture": "", "Mass": "1", "Other": "x"}
    assert read_labels(row, ("Mass", "Fracture", "Edema"), "t") == [1, None, -1]


def test_another_value_is_named() -> None:
    with pytest.raises(FXError, match="t.csv: row 4: column 'Mass': '0.5' is not 1, 0, -1 or blank"):
        read_labels({"Mass": "0.5"}, ("Mass",), "t.csv: row 4")
