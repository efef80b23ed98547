"""Labels as tables write them: as the CheXpert and NegBio labellers do, which mine reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fx_d2.structures import FXError

VALUES: dict[str, int | None] = {"": None, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def read_labels(row: Mapping[str, str], classes: Sequence[str], where: str) -> list[int | None]:
    """The labels of a table's row by the names of its columns: 1, 0, -1 = uncertain, None = not mentioned.

    Raises:
        FXError: beginning with `where`, for another value.
    """
    strange = next((name for name in classes if row[name] not in VALUES), None)
    if strange is not None:
        raise FXError(f"{where}: column {strange!r}: {row[strange]!r} is not 1, 0, -1 or blank")
    return [VALUES[row[name]] for name in classes]
