"""NODE21: from the drawn release to what the world drew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from fx_d2.data import read_full_size
from fx_d2.structures import FXError

ROW = "node21"
TABLE = "proccessed_data/metadata.csv"


def test_nodules_healthy_films_and_origins(prepare: Callable[..., Any]) -> None:
    splits = prepare(ROW)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "val": 1, "test": 3}
    healthy = 0
    for film, record in [pair for rows in splits.values() for pair in rows]:
        assert record["labels"] == [int(bool(film.instances))] and record["annotated"]["loc"]
        found = sorted(tuple(row["bbox"]) for row in record["annotations"])
        assert found == sorted(tuple(map(float, instance.box)) for instance in film.instances)
        healthy += not found
        assert record["meta"] == {"origin": ("jsrt", "padchest", "chestxray14", "openi")[film.number % 4]}
        # 12 bits in 16: the grey range is stated, so the film is not dark.
        assert np.abs(read_full_size(record).astype(int) - film.image).max() <= 1
    assert 0 < healthy < 14


def test_another_grey_range_shows_when_it_is_wrong(prepare: Callable[..., Any]) -> None:
    _, record = prepare(ROW, "--intensity", "0", "1000")["train"][0]
    with pytest.raises(FXError, match="outside its `intensity`"):
        read_full_size(record)


def test_films_of_eight_bits_need_no_range(prepare: Callable[..., Any], release: Callable[[str], Any]) -> None:
    drawn = release(ROW)
    path = drawn.root / drawn.paths[0]
    before = path.read_bytes()
    try:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(drawn.films[0].image), str(path))
        records = {film.number: record for rows in prepare(ROW).values() for film, record in rows}
        assert records[0]["intensity"] is None and records[1]["intensity"] == [0, 4095]
        assert (read_full_size(records[0]) == drawn.films[0].image).all()
    finally:
        path.write_bytes(before)


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / TABLE).read_text()
        assert old in text
        (root / TABLE).write_text(text.replace(old, new, 1))

    return change


def first_row(root: Path, new: str) -> None:
    lines = (root / TABLE).read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if ",n" in line)
    cells = lines[place].split(",")
    lines[place] = new.format(*cells)
    (root / TABLE).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("img_name", "image"), "no column 'img_name'"),
        (lambda root: first_row(root, "0,{1},{2},2,{4},{5},{6}"), "label '2' is not 0 or 1"),
        (lambda root: first_row(root, "0,nan,{2},1,{4},{5},{6}"), "must be four finite numbers"),
        (lambda root: first_row(root, "0,wide,{2},1,{4},{5},{6}"), "x, y, width, height must be numbers"),
        (lambda root: first_row(root, "0,0,{2},0,0,0,0\n{0},{1},{2},1,{4},{5},{6}"), "has a row without a nodule and"),
        (lambda root: first_row(root, "0,{1},n9999.mha,1,{4},{5},{6}"), "n9999.mha: image file cannot be read"),
    ],
)
def test_a_faulty_table_is_refused(refused: Callable[..., str], change: Callable[[Path], None], message: str) -> None:
    assert message in refused(ROW, change)
