import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from fx_d2.data.overlap import FORMAT, annotation_digest
from fx_d2.engine.resume import require_same_run, run_record
from fx_d2.structures import FXError

MakeCfg = Callable[..., CfgNode]


OPTIONS = (
    *("SOLVER.MICRO_BATCH.CLS", "1", "SOLVER.MICRO_BATCH.LOC", "2", "SOLVER.MICRO_BATCH.SEG", "2"),
    *("SOLVER.OPTIMIZER", "sgd", "SOLVER.LR_UPDATE", "cycle", "SOLVER.REFERENCE_BATCH", "8", "SCHEDULE.CYCLES", "2"),
    *("SCHEDULE.ITERS_PER_PASS", "2", "MODEL.TEACHER.UPDATE", "step", "MODEL.TEACHER.SCHEDULE", "cosine"),
)
"""Whatever has, or could be thought to have, a state of its own."""


@pytest.mark.parametrize(("workers", "opts"), [(("0", "2"), ()), (("0",), OPTIONS)], ids=["as it is", "with options"])
def test_killed_in_every_kind_of_phase_a_run_ends_bit_equal(
    world: Path, config_file: Path, tmp_path: Path, workers: tuple[str, ...], opts: tuple[str, ...]
) -> None:
    root = Path(__file__).parents[2]
    program = root / "tests" / "engine" / "kill_and_resume.py"
    done = subprocess.run(
        [
            sys.executable,
            str(program),
            str(config_file),
            str(world),
            str(tmp_path),
            "--workers",
            *workers,
            "--opts",
            *opts,
        ],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    deaths, ends = [row for row in rows if row[0].isdigit()], [row for row in rows if row[1] == "the end"]
    kinds = {phase.split("/", 1)[1] for _, phase, *_ in deaths}
    assert kinds == {"cls/release", "loc/lock", "loc/release", "seg/lock", "seg/release"}
    assert any(row[2] == "yes" for row in deaths) and all(int(row[3]) <= int(row[0]) for row in deaths)
    assert len({row[3] for row in deaths}) > 3, "runs did not go on where they were killed"
    assert {row[4] for row in deaths} == {"0"} and len(ends) == len(workers)
    for end in ends:
        difference, tensors = end[4].split(" in ")
        assert difference == "0" and int(tensors.split()[0]) > 500


def _require(make_cfg: MakeCfg, *opts: str) -> None:
    require_same_run(run_record(make_cfg()), run_record(make_cfg(*opts)), "m.pth")


def test_what_has_no_part_in_the_weights_may_change(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _require(make_cfg, "OUTPUT_DIR", "x", "DATALOADER.NUM_WORKERS", "3", "TEST.BATCH_SIZE", "1",
                 "DATASETS.TEST", "('beta_test',)", "SOLVER.CHECKPOINT_STEPS", "7", "MODEL.WEIGHTS", "x.pth",
                 "VIS_PERIOD", "5")  # fmt: skip
    assert not caplog.text


def test_which_images_are_left_out_counts_and_not_the_file_that_names_them(make_cfg: MakeCfg, tmp_path: Path) -> None:
    make_cfg()
    records = []
    for number, left_out in enumerate(([3, 1], [1, 3], [1])):
        images = [{"image_id": i} for i in left_out]
        splits = {"alpha_train": {"annotations": annotation_digest("alpha_train"), "images": images}}
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"format": FORMAT, "splits": splits}))
        records.append(run_record(make_cfg("DATASETS.EXCLUDE", str(path))))
    assert [x["datasets"]["alpha_train"]["excluded"] for x in records] == [[1, 3], [1, 3], [1]]
    require_same_run(records[0], records[1], "m.pth")
    with pytest.raises(FXError, match=r"DATASETS\.EXCLUDE.* alpha_train"):
        require_same_run(records[0], records[2], "m.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"SOLVER.MICRO_BATCH.{task}", "1") for task in ("CLS", "LOC", "SEG")),
        ("MODEL.LOC.GRAD_CHECKPOINTING", "True"),
        ("MODEL.TIMM.GRAD_CHECKPOINTING", "True"),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.COMPILE", "default"),
        ("CUDNN_BENCHMARK", "True"),
    ],
)
def test_what_changes_the_last_bits_is_warned_about(
    make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture, key: str, value: str
) -> None:
    _require(make_cfg, key, value)
    assert key in caplog.text


def test_a_longer_run_is_warned_about(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _require(make_cfg, "SCHEDULE.CYCLES", "4")
    assert "not bit for bit: SCHEDULE.CYCLES was 1 and is now 4" in caplog.text


def test_another_way_of_computing_is_warned_about(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    stored, record = run_record(make_cfg()), run_record(make_cfg("MODEL.LOC.SAMPLER", "torch"))
    record["versions"]["deformable attention"] = "another"
    with caplog.at_level(logging.WARNING):
        require_same_run(stored, record, "m.pth")
    assert "MODEL.LOC.SAMPLER was auto and is now torch" in caplog.text
    assert "'deformable attention': 'another'" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", "0.5", r"SOLVER\.BASE_LR was 0\.001 and is now 0\.5"),
        ("DATASETS.TRAIN", "('beta_train', 'alpha_train')", r"DATASETS\.TRAIN was"),
        ("SCHEDULE.BATCH_SIZE.LOC", "2", r"SCHEDULE\.BATCH_SIZE\.LOC was 4 and is now 2"),
        ("SCHEDULE.STRATEGY", "[{'task': 'cls', 'share': 1.0, 'train': ['cls_heads']}]", r"SCHEDULE\.STRATEGY"),
        ("SCHEDULE.ORDER", "shuffled", r"SCHEDULE\.ORDER was listed and is now shuffled"),
        ("SCHEDULE.ITERS_PER_PASS", "9", r"SCHEDULE\.ITERS_PER_PASS was 0 and is now 9"),
        ("SEED", "4", "SEED was 3 and is now 4"),
    ],
)
def test_other_settings_are_another_run(make_cfg: MakeCfg, key: str, value: str, message: str) -> None:
    with pytest.raises(FXError, match=message):
        _require(make_cfg, key, value)


def test_another_repetition_is_another_run(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    cfg.defrost()
    cfg.SCHEDULE.REPEAT.beta = 2
    with pytest.raises(FXError, match=r"SCHEDULE\.REPEAT\.beta was None and is now 2"):
        require_same_run(run_record(make_cfg()), run_record(cfg), "m.pth")


def test_keys_of_another_version_are_said_to_be_that(make_cfg: MakeCfg) -> None:
    stored, record = run_record(make_cfg()), run_record(make_cfg())
    assert "  LAYER_DECAY: 1.0\n" in stored["config"]
    stored["config"] = stored["config"].replace("  LAYER_DECAY: 1.0\n", "")
    with pytest.raises(FXError, match=r"another version of fx_d2, whose keys differ: SOLVER\.LAYER_DECAY\. Continue"):
        require_same_run(stored, record, "m.pth")


def test_changed_data_and_changed_rows_are_named(make_cfg: MakeCfg) -> None:
    stored, record = run_record(make_cfg()), run_record(make_cfg())
    record["datasets"]["beta_train"]["annotations"] = "0" * 64
    with pytest.raises(FXError, match="annotation file of beta_train has changed"):
        require_same_run(stored, record, "m.pth")
    record = run_record(make_cfg())
    record["datasets"]["alpha_train"]["row"]["flip_pairs"] = []
    with pytest.raises(FXError, match="row .* of alpha_train has changed"):
        require_same_run(stored, record, "m.pth")


def test_other_processes_and_versions_are_warned_about(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    stored = run_record(make_cfg()) | {"world_size": 2, "versions": {"torch": "1.0"}}
    with caplog.at_level(logging.WARNING):
        require_same_run(stored, run_record(make_cfg()), "m.pth")
    assert "world_size was 2 and is now 1" in caplog.text and "versions was {'torch': '1.0'}" in caplog.text


def test_a_file_without_a_record_cannot_be_resumed(make_cfg: MakeCfg) -> None:
    with pytest.raises(FXError, match=r"m\.pth has no config"):
        require_same_run({}, run_record(make_cfg()), "m.pth")
