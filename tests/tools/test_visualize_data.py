"""The contact sheets' command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.annotations import write_spec, write_split
from fx_d2.data.masks import encode_mask
from fx_d2.structures import DatasetSpec

SPEC = DatasetSpec(name="toy", title="Toy", cls_classes=("tb", "flu"), loc_classes=("tb",), seg_classes=("lung",))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of one dataset: six training films of which one has findings, two test films with labels alone."""
    folder = tmp_path / "toy"
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", 6), ("test", 2)):
        rows = []
        for i in range(count):
            film = np.random.default_rng(i).integers(0, 255, (40, 50), dtype=np.uint8)
            Image.fromarray(film).save(folder / "images" / f"{split}{i}.png")
            row = {"file_name": f"{split}{i}.png", "width": 50, "height": 40, "patient_id": f"{split}{i}"}
            row |= {"labels": [int(i == 5), None]}
            if split == "train":
                row |= {
                    "boxes": [("tb", [5, 5, 20, 20])] if i == 5 else [],
                    "masks": [np.ones((40, 50)) if i else None],
                }
            rows.append(row)
        write_split(folder / f"{split}.json", spec=SPEC, split=split, image_root="images", images=rows)
    write_spec(folder, SPEC)
    file = tmp_path / "config.yaml"
    file.write_text(
        f"VERSION: 2\nDATASETS: {{ROOT: {tmp_path}, TRAIN: [toy_train], TEST: [toy_test]}}\nMODEL: {{DEVICE: cpu}}\n"
    )
    return file


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("visualize_data")


def run(tool: ModuleType, config: Path, *options: str) -> int:
    return tool.main(["--config-file", str(config), "--output", str(config.parent / "out"), *options])


def test_a_sheet_for_each_task(tool: ModuleType, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tool, config) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["toy_train_cls.png", "toy_train_loc.png", "toy_train_seg.png"]
    first = np.asarray(Image.open(config.parent / "out" / names[0]))
    assert run(tool, config, "--original") == 0
    assert (np.asarray(Image.open(config.parent / "out" / names[0])) != first).any()


def test_test_splits_and_single_tasks(tool: ModuleType, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tool, config, "--dataset", "toy_test", "--dataset", "toy_train", "--task", "cls") == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["toy_test_cls.png", "toy_train_cls.png"]


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_findings_are_shown_first(tool: ModuleType, task: str) -> None:
    """Of the annotated films one is positive: it is on every sheet."""
    empty, filled = (encode_mask(np.full((4, 4), value)) for value in (0, 1))
    records = [
        {"labels": [int(i == 17)], "annotations": [{}] * (i == 17), "masks": [None, filled if i == 17 else empty]}
        for i in range(100)
    ]
    for seed in range(3):
        args = tool.parse_args(["--config-file", "x", "--output", "y", "--num", "4", "--seed", str(seed)])
        chosen = tool._choose(records, task, args)
        assert len(chosen) == 4 and records[17] in chosen


def test_only_what_is_trained_on_is_shown(tool: ModuleType, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    draw = tool._training_cells

    def spy(cfg: Any, spec: Any, task: str, records: list[dict[str, Any]], seed: int) -> Any:
        shown[task] = len(records)
        return draw(cfg, spec, task, records, seed)

    monkeypatch.setattr(tool, "_training_cells", spy)
    assert run(tool, config, "DATASETS.FEW_SHOT.IMAGES", "2") == 0
    assert shown == {"cls": 2, "loc": 2, "seg": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dataset", "heart_train"), "--dataset heart_train: not a split in the config"),
        (("--dataset", "toy_test", "--task", "seg"), "no image of toy_test is annotated for seg"),
        (("--num", "0"), "--num 0"),
    ],
)
def test_refused(
    tool: ModuleType, config: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert run(tool, config, *options) == 1
    assert message in capsys.readouterr().err


def test_output_that_is_a_file(tool: ModuleType, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "out").write_text("")
    assert run(tool, config) == 1
    assert capsys.readouterr().err == f"error: {config.parent / 'out'}: File exists\n"
