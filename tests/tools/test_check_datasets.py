"""The check command on folders with and without faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from fx_d2.data.annotations import write_spec, write_split
from fx_d2.structures import DatasetSpec

SHARED = {("first", "train", 0), ("second", "test", 2)}
"""Places of the one film that is in both datasets."""


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("check_datasets")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two datasets of three training and three test films each."""
    random = np.random.default_rng(0)
    shared = random.integers(0, 255, (64, 64), dtype=np.uint8)
    for name in ("first", "second"):
        spec = DatasetSpec(name=name, title=name, cls_classes=("tb",))
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for split in ("train", "test"):
            rows = []
            for i in range(3):
                own = random.integers(0, 255, (64, 64), dtype=np.uint8)
                cv2.imwrite(str(folder / "images" / f"{split}{i}.png"), shared if (name, split, i) in SHARED else own)
                row = {"file_name": f"{split}{i}.png", "width": 64, "height": 64, "labels": [i % 2]}
                rows.append(row | {"patient_id": f"{split}{i}"})
            write_split(folder / f"{split}.json", spec=spec, split=split, image_root="images", images=rows)
        write_spec(folder, spec)
    return tmp_path


def run(tool: ModuleType, root: Path, *options: str) -> int:
    return tool.main([*options, "--root", str(root), "--workers", "0"])


def test_all_is_well(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of every split, no reading, exit code 0."""
    assert run(tool, root) == 0
    out = capsys.readouterr().out
    assert "label tb  1/2/0  1/2/0" in out and "0 problems in 4 splits of 2 datasets" in out and "files" not in out


def test_films_in_two_places(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shared film is named, and written for DATASETS.EXCLUDE."""
    assert run(tool, root, "--exclude", str(root / "leaks.json")) == 0
    out = capsys.readouterr().out
    assert "PNG, 8 bits: 3" in out and "training images that are also in a test split: 1" in out
    assert f"{root}/first/images/train0.png is {root}/second/images/test2.png of second_test" in out
    assert list(json.loads((root / "leaks.json").read_text())["splits"]) == ["first_train"]


def test_faults(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every fault is named, also in a run that meets several, and the exit code tells."""
    (root / "first" / "images" / "train1.png").unlink()
    (root / "second" / "images" / "test0.png").write_bytes(b"no image")
    annotations = root / "second" / "train.json"
    annotations.write_text(annotations.read_text().replace('"tb"', '"flu"'))
    text = (root / "first" / "test.json").read_text().replace('"test0"', '"train0"')
    (root / "first" / "test.json").write_text(text.replace("content_hash", "old_hash"))
    assert run(tool, root, "--read") == 1
    out = capsys.readouterr().out
    for fault in ("train1.png: image file", "test0.png: not a complete PNG", "second/train.json", "patient 'train0'"):
        assert fault in out
    assert "5 problems in 3 splits" in out  # a missing file counts when it is looked for and when it is read


def test_a_mask_file_that_is_missing(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is a fault among others, when it is looked for and when it is counted; the other dataset is counted still."""
    spec = DatasetSpec(name="first", title="first", seg_classes=("lung",))
    row = {"file_name": "train0.png", "width": 64, "height": 64, "patient_id": "p", "masks": [{"file": "none.png"}]}
    write_split(root / "first" / "train.json", spec=spec, split="train", image_root="images", images=[row])
    (root / "first" / "test.json").unlink()
    write_spec(root / "first", spec)
    assert run(tool, root) == 1
    out = capsys.readouterr().out
    assert "none.png: mask file not found (1 of 1 masks" in out and "none.png: mask file cannot be read" in out
    assert "label tb  1/2/0  1/2/0" in out and "2 problems in 3 splits of 2 datasets" in out


def test_other_folders_are_let_be(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What datasets were prepared from may lie beside them."""
    (root / "source").mkdir()
    (root / "source" / "dataset.json").write_text("{}")
    assert run(tool, root) == 0
    assert "0 problems in 4 splits of 2 datasets" in capsys.readouterr().out


def test_exclusions_that_cannot_be_written(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "file").write_text("")
    assert run(tool, root, "--exclude", str(root / "file" / "leaks.json")) == 2
    assert capsys.readouterr().err == f"error: {root / 'file'}: File exists\n"


def test_some_of_them(tool: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row or a split by name; what is not there is refused."""
    assert run(tool, root, "first_test") == 0
    assert "1 splits of 1 datasets" in capsys.readouterr().out
    for name in ("third", "first_val"):
        assert run(tool, root, name) == 2
        assert "annotation file" in capsys.readouterr().err
    assert run(tool, root / "first" / "images") == 2
    assert "no prepared datasets" in capsys.readouterr().err
