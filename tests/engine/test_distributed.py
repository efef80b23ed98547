import argparse
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.engine import default_argument_parser

from fx_d2.engine import distributed
from fx_d2.engine.distributed import Place, join_group, launch, on_first, place_from_environment
from fx_d2.structures import FXError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "4(x2)"}
SRUN = BATCH | {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}
SRUN |= {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


def test_torchrun() -> None:
    assert place_from_environment(TORCHRUN) == Place(3, 4, 1, 2, "env://")


def test_without_either_there_is_no_place() -> None:
    assert place_from_environment({"SLURM_JOB_ID": "3"}) is None
    # A batch script is an ordinary process, whatever tasks its job has; so is a step of one task.
    assert place_from_environment(BATCH) is None
    assert place_from_environment(BATCH | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_batch_script_of_several_tasks_runs_at_once_and_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for key, value in BATCH.items():
        monkeypatch.setenv(key, value)
    ran: list[argparse.Namespace] = []
    launch(ran.append, _arguments(), "cpu")
    assert ran and "8 tasks" in caplog.text and "srun" in caplog.text


@pytest.mark.parametrize(
    ("more", "address"),
    [
        ({"SLURM_JOB_NODELIST": "gpu[03-05,9],cpu1", "SLURM_JOB_ID": "40007"}, "tcp://gpu03:20007"),
        ({"SLURM_JOB_NODELIST": "n7,n9"}, "tcp://n7:20000"),
        ({"SLURM_JOB_NODELIST": "n[7,9]", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4444"}, "tcp://10.0.0.1:4444"),
    ],
)
def test_srun(more: dict[str, str], address: str) -> None:
    assert place_from_environment(SRUN | more) == Place(5, 8, 1, 4, address)


def test_srun_of_one_step_counts_the_tasks_of_the_step() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "6", "MASTER_ADDR": "a"}
    place = place_from_environment(SRUN | step)
    assert place is not None and (place.world_size, place.local_size) == (6, 6)


def test_srun_that_names_no_machine_or_spreads_unevenly() -> None:
    with pytest.raises(FXError, match="MASTER_ADDR"):
        place_from_environment(SRUN)
    for counts in ("5,3", "4,2(x2)"):
        with pytest.raises(FXError, match=re.escape(f"Slurm starts {counts} processes")):
            place_from_environment(SRUN | {"MASTER_ADDR": "a", "SLURM_STEP_TASKS_PER_NODE": counts})
    with pytest.raises(FXError, match="unevenly"):
        place_from_environment(TORCHRUN | {"LOCAL_WORLD_SIZE": "3"})


def _arguments(**changes: object) -> argparse.Namespace:
    args = default_argument_parser().parse_args([])
    vars(args).update({"dist_url": "auto"} | changes)
    return args


def test_one_process_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(key, raising=False)
    seen: list[object] = []
    args = _arguments()
    launch(seen.append, args, "cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    launch(seen.append, args, "cuda")  # that there is no GPU is not said here
    assert seen == [args, args]


def test_the_places_of_one_machine_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(key, raising=False)
    started: list[list[Place]] = []
    monkeypatch.setattr(distributed, "_run_here", lambda places, *_: started.append(places))
    url = "tcp://first:4444"
    launch(print, _arguments(num_gpus=2, num_machines=3, machine_rank=1, dist_url=url), "cpu")
    assert started == [[Place(2, 6, 0, 2, url), Place(3, 6, 1, 2, url)]]
    launch(print, _arguments(num_gpus=2), "cpu")
    assert [place.rank for place in started[1]] == [0, 1] and started[1][0].address.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(("code", "said"), [(75, 75), (-signal.SIGTERM, 128 + signal.SIGTERM), (-signal.SIGKILL, None)])
def test_the_run_ends_with_the_code_of_the_process_that_failed(
    monkeypatch: pytest.MonkeyPatch, code: int, said: int | None
) -> None:
    context = mock.Mock(pids=lambda: [])
    context.join.side_effect = [False, torch.multiprocessing.ProcessExitedException("", 1, 0, code, "SIGX")]
    monkeypatch.setattr(torch.multiprocessing, "start_processes", lambda *args, **options: context)
    with pytest.raises(SystemExit) as ended:
        distributed._run_here([], print, _arguments(), "cpu")
    assert ended.value.code == said if said is not None else "SIGX" in ended.value.code


@pytest.mark.parametrize(("seen", "index"), [(4, 2), (1, 0), (2, None)])
def test_a_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, seen: int, index: int | None) -> None:
    """The third process of a machine; Slurm may show it no other GPU than its own."""
    taken, joined = [], mock.Mock()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined)
    monkeypatch.setattr(distributed, "comm", mock.Mock())
    with nullcontext() if index is not None else pytest.raises(FXError, match="process 2 .* no GPU"):
        join_group(Place(6, 8, 2, 4, "env://"), "cuda")
    assert taken == ([] if index is None else [index]) and joined.called == (index is not None)
    if index is not None:
        assert joined.call_args.args == ("nccl",)
        assert (joined.call_args.kwargs["rank"], joined.call_args.kwargs["world_size"]) == (6, 8)
        distributed.comm.create_local_process_group.assert_called_once_with(4)


def test_a_group_that_cannot_be_joined_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "init_process_group", mock.Mock(side_effect=RuntimeError("refused")))
    with pytest.raises(FXError, match="process 1 of 2 .* tcp://first:1: refused"):
        join_group(Place(1, 2, 1, 2, "tcp://first:1"), "cpu")


def test_what_cannot_be_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(FXError, match="--num-gpus 3: torch sees 2 GPUs"):
        launch(print, _arguments(num_gpus=3), "cuda")
    with pytest.raises(FXError, match="MODEL.DEVICE is cuda:0, but each of several"):
        launch(print, _arguments(num_gpus=2), "cuda:0")
    with pytest.raises(FXError, match="--dist-url"):
        launch(print, _arguments(num_gpus=2, num_machines=2), "cuda")
    with pytest.raises(FXError, match="--machine-rank is 2: with --num-machines 2 it starts at 0"):
        launch(print, _arguments(num_machines=2, machine_rank=2, dist_url="tcp://a:1"), "cpu")
    for key, value in (SRUN | {"MASTER_ADDR": "a"}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(FXError, match="8 processes; --num-gpus 2"):
        launch(print, _arguments(num_gpus=2), "cuda")


@pytest.mark.parametrize(("code", "left"), [(None, True), (75, True), (1, False), ("error: wrong", False)])
def test_processes_leave_the_group_where_all_end_together(
    monkeypatch: pytest.MonkeyPatch, code: int | str | None, left: bool
) -> None:
    """At the end, and stopped by a signal; not where one failed, whose peers would not come."""
    calls: list[str] = []
    monkeypatch.setattr("fx_d2.engine.distributed.join_group", lambda place, device: calls.append("joined"))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("left"))
    for key, value in TORCHRUN.items():
        monkeypatch.setenv(key, value)

    def main(args: argparse.Namespace) -> None:
        calls.append("ran")
        if code is not None:
            sys.exit(code)

    with nullcontext() if code is None else pytest.raises(SystemExit) as ended:
        launch(main, _arguments(), "cpu")
    assert calls == ["joined", "ran", "left"][: 2 + left] and (ended is None or ended.value.code == code)


def test_on_first_gives_the_value_and_raises_the_error() -> None:
    def fail() -> None:
        raise FXError("wrong")

    assert on_first(lambda: 3) == 3
    with pytest.raises(FXError, match="wrong"):
        on_first(fail)


def test_two_processes(world: Path, config_file: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    program = root / "tests" / "engine" / "two_processes.py"
    done = subprocess.run(
        [sys.executable, str(program), str(config_file), str(world), str(tmp_path), "--num-gpus", "2"],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    # One of the two kills itself at the end; the other must not wait for it.
    assert done.returncode == 1 and "process 1 of 2 was killed (SIGKILL" in done.stderr, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["world_size"] == 2
    for setting, differences in report["gradients"].items():
        wrong = {phase for phase, value in differences.items() if not value < 1e-10}
        # Batch statistics of each process alone, and Dice of parts, are what cannot agree.
        masks = {"BN class": {"alpha/seg/release"}, "GN in parts": {"alpha/seg/lock", "alpha/seg/release"}}
        assert wrong == masks.get(setting, set()), (setting, differences)
        assert len(differences) == 6
    training = report["training"]
    assert training["ranks_equal"] and training["tensors"] > 400 and training["ranks_equal_with_options"]
    # Whole models are sent once, not in each pass, and gradients are kept once.
    assert training["synchronized"] == 1
    assert all(pieces < tensors for pieces, tensors in training["gradients"]), training["gradients"]
    assert training["norms"] and all(logged == pytest.approx(own) for logged, own in training["norms"])
    assert len(set(training["seeds"])) == 2, "processes draw alike"
    assert training["codes"] == [75, 75] and training["resumed_at"] == [5, 5] and training["resumed_equal"]
    assert all("--resume" in error for error in training["refused"])
    together, alone = report["evaluation"]["together"], report["evaluation"]["alone"]
    assert together["metrics"]["student/alpha/loc/images"] == 5
    # Metrics, intervals, curves and scores alike.
    assert together == alone and together["intervals"] and together["details"] and together["scores"]
    for name in ("together", "alone"):
        records = json.loads((tmp_path / name / "inference" / "predictions_student.json").read_text())
        ids = [row["image_id"] for row in records["splits"]["alpha_test"]]
        assert ids == sorted(set(ids)) and len(ids) == 5
