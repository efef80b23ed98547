"""The commands of the README on a small synthetic world, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "projects/FoundationX/configs/smoke/synthetic_cpu.yaml"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def run(*command: str, code: int = 0) -> subprocess.CompletedProcess:
    """A command of the repository in a process of its own, from the repository's root."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a synthetic world and a finished run of one short cycle over all eleven datasets."""
    folder = tmp_path_factory.mktemp("end_to_end")
    counts = ("--size", "96", "--train", "8", "--val", "2", "--test", "4")
    run("datasets/prepare_synthetic.py", "--output", str(folder / "data"), "--seed", "1", *counts)
    done = run("tools/train_net.py", "--config-file", CONFIG, *options(folder, "run"))
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


def options(folder: Path, name: str) -> tuple[str, ...]:
    data, out = str(folder / "data"), str(folder / name)
    return ("DATASETS.ROOT", data, "OUTPUT_DIR", out, "SCHEDULE.CYCLES", "1", "SCHEDULE.ITERS_PER_PASS", "1",
            "INPUT.SIZE", "[96,96]", "DATALOADER.NUM_WORKERS", "0", "SOLVER.CHECKPOINT_CYCLES", "1")  # fmt: skip


def test_all_29_passes_run_and_both_models_are_evaluated_on_all_20_slots(trained: Path) -> None:
    log = (trained / "log").read_text()
    assert all(f"pass {i:2d}/29" in log for i in range(1, 30))
    results = json.loads((trained / "run" / "results.json").read_text())
    slots = {tuple(key.split("/")[:3]) for key in results["metrics"]}
    assert len(slots) == 40 and {slot[0] for slot in slots} == {"student", "teacher"}
    assert "| SIIM" in log and "student" in log


def test_evaluation_alone_gives_the_same_numbers(trained: Path) -> None:
    weights = str(trained / "run" / "model_final.pth")
    run(
        "tools/train_net.py",
        "--config-file",
        CONFIG,
        "--eval-only",
        *options(trained, "eval"),
        "MODEL.WEIGHTS",
        weights,
        "TEST.SPLIT",
        "val",
    )
    ours, first = (json.loads((trained / d / "results.json").read_text())["metrics"] for d in ("eval", "run"))
    assert ours == first


def test_a_training_does_not_touch_test_splits_and_a_request_does(trained: Path) -> None:
    first = json.loads((trained / "run" / "results.json").read_text())
    assert all(name.endswith("_val") for name in first["meta"]["splits"])
    weights = str(trained / "run" / "model_final.pth")
    run(
        "tools/train_net.py",
        "--config-file",
        CONFIG,
        "--eval-only",
        *options(trained, "test"),
        "MODEL.WEIGHTS",
        weights,
    )
    asked = json.loads((trained / "test" / "results.json").read_text())
    others = {name for name in asked["meta"]["splits"] if not name.endswith("_test")}
    assert len(asked["meta"]["splits"]) == 11 and others == {"chexpert_val", "tbx11k_val"}  # the paper's
    assert asked["meta"]["weights_hash"] == first["meta"]["weights_hash"]
    hashes = [row["content_hash"] for row in asked["meta"]["datasets"].values()]
    assert len(set(hashes)) == 11 and all(value.startswith("sha256:") for value in hashes)
    assert (trained / "run" / "operating_points.json").is_file()
    assert any("/op_sensitivity" in key for key in asked["metrics"])
    for key, file in asked["scores"].items():
        assert (trained / "test" / file).is_file(), key


def test_a_finished_run_resumes_to_its_end(trained: Path) -> None:
    done = run("tools/train_net.py", "--config-file", CONFIG, "--resume", *options(trained, "run"),
               "SCHEDULE.CYCLES", "2", "DATASETS.TEST", "('siim_acr_test',)")  # fmt: skip
    assert "resuming at iteration 29 of 58" in done.stdout + done.stderr
    assert "cycle 2/2 pass 29/29" in done.stdout + done.stderr


def test_predictions_are_drawn(trained: Path) -> None:
    run("tools/visualize_predictions.py", "--config-file", CONFIG, "--dataset", "chestx_det_test", "--num", "2",
        "--predictions", str(trained / "test" / "inference" / "predictions_student.json"),
        "--output", str(trained / "pictures"), "DATASETS.ROOT", str(trained / "data"))  # fmt: skip
    assert len(list((trained / "pictures").rglob("*.png"))) == 2


def test_a_report_is_made(trained: Path) -> None:
    done = run("tools/report.py", f"fx={trained / 'test'}", "--compare", "fx", "fx:teacher", "--draws", "20",
               "--no-pictures", "--output", str(trained / "report"))  # fmt: skip
    assert done.stdout.startswith(f"report: {trained / 'report' / 'report.html'}")
    tables = json.loads((trained / "report" / "report.json").read_text())["tables"]
    rows = tables["pretraining"]["rows"]
    student = tables["pretraining"]["columns"].index("student")
    assert len(rows) == 20 and any(isinstance(row[student], dict) for row in rows)
    assert tables["compared_1"]["title"] == "fx (teacher) vs. fx (student)"
    page = (trained / "report" / "report.html").read_text(encoding="utf-8")
    # The training was found by its weights.
    assert "Research use only" in page and "learning rate over iterations" in page


def test_an_error_is_one_line_and_a_non_zero_exit(trained: Path) -> None:
    done = run("tools/train_net.py", "--config-file", CONFIG, "--eval-only", *options(trained, "none"), code=1)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: MODEL.WEIGHTS is empty") and "Traceback" not in done.stderr
