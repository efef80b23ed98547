"""Series of runs: which cells there are, what is done of each, and what comes out."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from detectron2.engine import default_argument_parser

from fx_d2.data import write_spec, write_split
from fx_d2.engine import build_cfg
from fx_d2.engine.signals import EXIT_CODE
from fx_d2.structures import DatasetSpec, FXError

ROOT = Path(__file__).resolve().parents[2]
SPEC = DatasetSpec(name="films", title="Films", cls_classes=("bright",))
CONFIG = """
VERSION: 2
DATASETS: {TRAIN: [films_train], TEST: [films_test]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {SIZE: [64, 64]}
MODEL:
  DEVICE: cpu
  TIMM: {NAME: swin_tiny_patch4_window7_224, KWARGS: {embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}}
  TEACHER: {CONSISTENCY: 0.0}
SCHEDULE: {CYCLES: 2, BATCH_SIZE: {CLS: 4}}
SOLVER: {BASE_LR: 0.01, CHECKPOINT_BEST: ["student/*/cls/auroc"]}
TEST: {EVAL_CYCLES: 1, BOOTSTRAP: 0}
"""


@pytest.fixture(scope="module")
def series(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    """tools/run_series.py."""
    return load_tool("run_series")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """--config-file and --output of a tiny config."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    return ["--config-file", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "series")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared root with the dataset films."""
    folder, random = tmp_path / "data" / "films", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    write_spec(folder, SPEC)
    for split in ("train", "val", "test"):
        rows = []
        for i in range(8):
            name = f"{split}{i}.png"
            cv2.imwrite(str(folder / "images" / name), random.integers(0, 100 + 100 * (i % 2), (64, 64), np.uint8))
            rows.append({"file_name": name, "width": 64, "height": 64, "patient_id": name, "labels": [i % 2]})
        write_split(folder / f"{split}.json", spec=SPEC, split=split, image_root="images", images=rows)
    return tmp_path / "data"


def test_cells_are_all_combinations(series: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    grids = ["--datasets", "films_test,jsrt_test", "--grid", "SEED,DATASETS.FEW_SHOT.SEED=0,1"]
    args = series.parse_args([*arguments, *grids, "SCHEDULE.CYCLES", "3"])
    cells = series.build_cells(args)
    assert [cell.folder.name for cell in cells] == [
        "dataset_films_seed_0",
        "dataset_films_seed_1",
        "dataset_jsrt_seed_0",
        "dataset_jsrt_seed_1",
    ]
    cfg = cells[3].cfg
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("jsrt_train",), ("jsrt_test",))
    assert (cfg.SEED, cfg.DATASETS.FEW_SHOT.SEED, cfg.SCHEDULE.CYCLES) == (1, 1, 3)
    assert cells[3].test[-4:-1] == (
        "MODEL.WEIGHTS",
        str(cells[3].folder / "model_best_student_cls_auroc.pth"),
        "OUTPUT_DIR",
    )
    last = series.build_cells(series.parse_args([*arguments, "SOLVER.CHECKPOINT_BEST", "[]"]))
    assert [cell.folder.name for cell in last] == ["run"] and last[0].test[-3].endswith("/run/model_final.pth")


def test_a_dry_run_gives_a_line_of_shell_for_each_cell(
    series: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    series.main([*arguments, "--grid", "DATASETS.FEW_SHOT.IMAGES=6,3", "--dry-run", "DATASETS.CLASSES", "['bright']"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[1])
    train, test = words[: words.index("&&")], words[words.index("&&") + 1 :]
    assert "--resume" in train and train[-6:-2] == ["DATASETS.CLASSES", "['bright']", "DATASETS.FEW_SHOT.IMAGES", "3"]
    assert "--eval-only" in test and test[-1].endswith("/images_3/test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "SEED"], "--grid 'SEED': it must be KEY=VALUE,VALUE"),
        (["--grid", "SEED=0,,1"], "--grid 'SEED=0,,1'"),
        (["--grid", "SEEED=0,1"], "SEEED"),
        (["--grid", "SEED=0,0"], "two cells would share the folder .*seed_0"),
        (["--datasets", "films"], "'films' must be '<row>_<split>'"),
        (["--datasets", "films_val"], "SOLVER.CHECKPOINT_BEST would select the model on films_val"),
    ],
)
def test_what_is_not_understood_is_one_line(
    series: ModuleType, arguments: list[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        series.main([*arguments, *words])


def test_a_series_trains_tests_and_is_not_run_twice(
    series: ModuleType, arguments: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*arguments, "--grid", "SEED,DATASETS.FEW_SHOT.SEED=0,1", "--prune"]
    opts = ["DATASETS.ROOT", str(data), "DATASETS.FEW_SHOT.IMAGES", "3"]
    series.main([*words, *opts])
    first = capsys.readouterr().out
    cells = sorted((tmp_path / "series").iterdir())
    values = []
    for cell in cells:
        results = json.loads((cell / "test" / "results.json").read_text())
        assert results["meta"]["splits"] == ["films_test"] and "IMAGES: 3" in results["meta"]["config"]
        assert [path.name for path in cell.glob("*.pth")] == ["model_best_student_cls_auroc.pth"]
        values.append(100 * results["metrics"]["student/films/cls/auroc"])
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    row = [cell.strip() for cell in first.splitlines()[-3].strip("|").split("|")]
    assert row == ["student", "films_test", "AUROC", f"{mean:.2f} ± {deviation:.2f} (2)"]
    series.main([*words, *opts])
    again = capsys.readouterr().out
    assert again.count("already done") == 2 and again.splitlines()[-5:] == first.splitlines()[-5:]
    (cells[1] / "test" / "results.json").unlink()
    series.main([*words, "--collect", *opts])
    collected = capsys.readouterr().out.splitlines()
    assert collected[-4].split("|")[1].strip() == "student" and "±" not in collected[-4]
    assert collected[-1] == "- not tested yet, 1 of 2: seed_1" and "±" in collected[-2]
    with pytest.raises(SystemExit, match="holds a run of other settings: SCHEDULE.CYCLES was 2 and is now 1"):
        series.main([*words, *opts, "SCHEDULE.CYCLES", "1"])
    with pytest.raises(SystemExit, match="MODEL.WEIGHTS was .* and is now other.pth"):
        series.main([*words, *opts, "MODEL.WEIGHTS", "other.pth"])


def test_the_first_error_ends_a_series_in_one_line(series: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*series/run: .*nowhere.* not found.*console.txt"):
        series.main([*arguments, "DATASETS.ROOT", str(tmp_path / "nowhere")])


def test_an_output_that_cannot_be_made_is_one_line(series: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "series").write_text("a file")
    with pytest.raises(SystemExit, match=r"error: .*series"):
        series.main(arguments)


def test_a_best_model_that_there_is_not_is_explained(
    series: ModuleType, arguments: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric was undefined at every evaluation: no checkpoint was ever the best."""
    monkeypatch.setattr(series, "call", lambda command, folder: None)
    with pytest.raises(SystemExit, match=r"error: .*run: student/\*/cls/auroc was undefined in all evaluations"):
        series.main([*arguments, "DATASETS.ROOT", str(data)])


@pytest.mark.parametrize(
    "end", [f"sys.exit({EXIT_CODE})", "os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(128 + signal.SIGTERM)"]
)
def test_a_stopped_run_stops_the_series_with_its_code(series: ModuleType, tmp_path: Path, end: str) -> None:
    """Saved; or ended by the signal itself where there was nothing to save, alone or below a launcher."""
    with pytest.raises(SystemExit) as stop:
        series.call((sys.executable, "-c", f"import os, signal, sys; {end}"), tmp_path)
    assert stop.value.code == EXIT_CODE


def test_a_failed_run_is_an_error_with_its_last_line(series: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FXError, match=r"no room \(see .*console.txt"):
        series.call((sys.executable, "-c", "import sys; sys.exit('error: no room')"), tmp_path)


def test_a_signal_reaches_the_run(series: ModuleType, tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *a: sys.exit({EXIT_CODE}))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )

    def send() -> None:
        while "ready" not in (tmp_path / "console.txt").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "console.txt").touch()
    before, sender = signal.getsignal(signal.SIGTERM), threading.Thread(target=send)
    sender.start()
    with pytest.raises(SystemExit) as stop:
        series.call((sys.executable, "-c", child), tmp_path)
    sender.join()
    assert stop.value.code == EXIT_CODE and signal.getsignal(signal.SIGTERM) == before


def commands_of(page: Path) -> list[list[str]]:
    """Arguments of every `python` that the page's blocks of shell would start."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    # cat shows results of runs that nobody makes here.
    script = "python() { printf '%s\\0' \"$@\" '\n'; }; cat() { :; }\n" + "\n".join(blocks)
    printed = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True).stdout
    return [line.split("\0")[:-1] for line in printed.split("\n\0") if line]


@pytest.mark.parametrize(
    ("page", "cells"),
    [("projects/FoundationX/README.md", [11, 6, 3, 1, 1, 1, 3, 1, 1, 30, 1, 1, 1]), ("docs/fine_tuning.md", [20])],
)
def test_the_commands_of_a_page_are_understood(
    series: ModuleType, page: str, cells: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    counts = []
    for tool, *words in commands_of(ROOT / page):
        assert (ROOT / tool).is_file()
        if tool == "tools/run_series.py":
            counts.append(len(series.build_cells(series.parse_args(words))))
        elif tool == "tools/train_net.py":
            args = default_argument_parser().parse_args(words)
            build_cfg(args.config_file, args.opts)
    assert counts == cells
