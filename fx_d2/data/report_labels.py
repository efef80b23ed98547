"""Labels in csv tables, in the format of the CheXpert and NegBio report labellers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fx_d2.structures import FXError

VALUES: dict[str, int | None] = {"": None, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def read_labels(row: Mapping[str, str], classes: Sequence[str], where: str) -> list[int | None]:
    """Parse the labels of a table row by column name: 1, 0, -1 = uncertain, None = not mentioned.

    Raises:
        FXError: any other value; the message starts with `where`.
    """
    strange = next((name for name in classes if row[name] not in VALUES), None)
    if strange is not None:
        raise FXError(f"{where}: column {strange!r}: {row[strange]!r} is not 1, 0, -1 or blank")
    return [VALUES[row[name]] for name in classes]
