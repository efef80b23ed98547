"""Launching: one command for one or several processes, started by --num-gpus, torchrun or srun."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import re
import signal
import socket
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed, multiprocessing

from fx_d2.data.loaders import STOP_SIGNALS
from fx_d2.engine.signals import EXIT_CODE
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

Main = Callable[[argparse.Namespace], None]

TIMEOUT = datetime.timedelta(minutes=30)
"""Timeout of collectives: rank 0 may merge and score a large evaluation while the others wait."""

GRACE_SECONDS = 10.0
"""After a process has died: time for the others to exit by themselves, and again after SIGTERM."""


@dataclass(frozen=True)
class Place:
    """The rank of a process and how to join its group.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: total number of processes.
        local_rank: rank on its machine.
        local_size: number of processes on its machine; the same on every machine.
        address: init method: "env://", or "tcp://host:port" of rank 0.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str


def place_from_environment(env: Mapping[str, str]) -> Place | None:
    """The rank assigned to this process by torchrun or srun, or None if neither started it as one of several.

    Raises:
        FXError: srun's variables name no machine for rank 0, or processes are distributed unevenly over machines.
    """
    if all(key in env for key in (*_TORCHRUN, "MASTER_ADDR")):
        rank, world, local_rank, local = (int(env[key]) for key in _TORCHRUN)
        place = Place(rank, world, local_rank, local, address="env://")
    elif (world := int(env.get("SLURM_STEP_NUM_TASKS", "1"))) > 1:
        # Only srun sets SLURM_STEP_*. A batch script has SLURM_PROCID and SLURM_NTASKS as well, but is one process.
        # "4", or "4(x2)" for two machines with four tasks each; "4,3" or "4,2(x2)" if the machines differ.
        counts = env.get("SLURM_STEP_TASKS_PER_NODE", str(world))
        even = re.fullmatch(r"(\d+)(\(x\d+\))?", counts)
        if even is None:
            raise FXError(f"Slurm starts {counts} processes on the machines of this job: start as many on each")
        place = Place(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), int(even[1]), _slurm_address(env))
    else:
        return None
    if place.world_size % place.local_size:
        raise FXError(f"{place.world_size} processes are distributed unevenly over the machines: start as many on each")
    return place


def _slurm_address(env: Mapping[str, str]) -> str:
    """MASTER_ADDR:MASTER_PORT, else the job's first machine and a port derived from the job ID."""
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    # "gpu[03-05,9],cpu1" begins with gpu03.
    first = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    host = env.get("MASTER_ADDR") or ("".join(part or "" for part in first.groups()) if first else "")
    if not host:
        raise FXError("Slurm started several processes, but gives no address for rank 0: set MASTER_ADDR")
    port = env.get("MASTER_PORT") or 20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000
    return f"tcp://{host}:{port}"


def launch(main: Main, args: argparse.Namespace, device: str) -> None:
    """Run `main(args)` in every process of the run, as one process group: NCCL on GPUs, gloo on CPUs.

    A process started by torchrun or srun joins its group. Otherwise `args.num_gpus` processes are started on this
    machine (with MODEL.DEVICE cpu: as many CPU processes), which is one of `args.num_machines`. SIGTERM and SIGUSR1
    are forwarded to them, and if one of them dies the others are terminated.

    Args:
        main: top-level function, so it can be pickled.
        args: of Detectron2's `default_argument_parser`.
        device: MODEL.DEVICE; "cuda" is the GPU of the process.

    Raises:
        FXError: too few GPUs, one GPU for several processes, or both a launcher and --num-gpus start processes.
        SystemExit: with the exit code of a failed process.
    """
    place = place_from_environment(os.environ)
    world = args.num_gpus * args.num_machines
    if device.startswith("cuda:") and (place is not None or world > 1):
        raise FXError(f"MODEL.DEVICE is {device}, but each of several processes needs its own GPU: set it to cuda")
    if place is not None:
        if world > 1:
            raise FXError(
                f"torchrun or srun starts {place.world_size} processes; --num-gpus {args.num_gpus} would start more: "
                "omit --num-gpus, or start the command without srun or with `srun --ntasks=1`"
            )
        _run_at(place, main, args, device)
        return
    if device.startswith("cuda") and args.num_gpus > max(1, torch.cuda.device_count()):
        raise FXError(f"--num-gpus {args.num_gpus}: torch sees {torch.cuda.device_count()} GPUs on this machine")
    if world <= 1:
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NUM_TASKS" not in os.environ:
            logger.warning(
                "this Slurm job has %s tasks, but the command runs as one process: for one process per task start it "
                "with srun",
                os.environ["SLURM_NTASKS"],
            )
        main(args)
        return
    if args.dist_url == "auto" and args.num_machines > 1:
        raise FXError("--num-machines: pass the same --dist-url tcp://<first machine>:<free port> on all machines")
    if not 0 <= args.machine_rank < args.num_machines:
        raise FXError(f"--machine-rank is {args.machine_rank}: with --num-machines {args.num_machines} it starts at 0")
    address = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
    first = args.machine_rank * args.num_gpus
    places = [Place(first + i, world, i, args.num_gpus, address) for i in range(args.num_gpus)]
    _run_here(places, main, args, device)


def _run_here(places: list[Place], main: Main, args: argparse.Namespace, device: str) -> None:
    """Start one process per rank of this machine and wait for them; SystemExit with the code of a failed one."""
    context = multiprocessing.start_processes(
        _started, args=(places, main, args, device), nprocs=len(places), join=False, start_method="spawn"
    )
    try:
        with _forwarded_signals(context.pids()):
            # A process may hang in a collective that a dead process will never join.
            while not context.join(grace_period=GRACE_SECONDS):
                pass
    except multiprocessing.ProcessExitedException as error:  # type: ignore[attr-defined]
        if error.exit_code > 0:
            sys.exit(error.exit_code)  # it has reported why
        if -error.exit_code in STOP_SIGNALS:
            sys.exit(128 - error.exit_code)  # as a shell reports it: stopped when there was nothing to save
        sys.exit(
            f"error: process {error.error_index} of {len(places)} was killed ({error.signal_name}; out of memory?): "
            "the run has ended; continue it with --resume"
        )


def _started(index: int, places: list[Place], main: Main, args: argparse.Namespace, device: str) -> None:
    _run_at(places[index], main, args, device)


def _run_at(place: Place, main: Main, args: argparse.Namespace, device: str) -> None:
    """Join the process group, run, and leave it."""
    join_group(place, device)
    together = False
    try:
        main(args)
        together = True
    except SystemExit as stop:
        together = stop.code == EXIT_CODE
        raise
    finally:
        # Only if all processes end at the same step: after a failure the peers are gone, and NCCL would wait for them.
        if together:
            distributed.destroy_process_group()


def join_group(place: Place, device: str) -> None:
    """Initialise the process group and, on GPUs, select this process's device.

    Raises:
        FXError: there is no GPU for this rank, or the group cannot be joined.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        seen = torch.cuda.device_count()
        # Under Slurm a process may see only its own GPU.
        index = 0 if seen == 1 else place.local_rank
        if index >= seen:
            raise FXError(f"process {place.local_rank} of this machine has no GPU: torch sees {seen}")
        torch.cuda.set_device(index)
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=place.address,
            rank=place.rank,
            world_size=place.world_size,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise FXError(f"process {place.rank} of {place.world_size} cannot join at {place.address}: {error}") from error
    comm.create_local_process_group(place.local_size)
    comm.synchronize()


@contextmanager
def _forwarded_signals(pids: list[int]) -> Iterator[None]:
    """Forward the stop signals to the processes of the run while the block runs."""

    def forward(number: int, frame: types.FrameType | None) -> None:
        del frame
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    before: dict[Any, Any] = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_first(function: Callable[[], Any]) -> Any:
    """Call `function` on rank 0 and return its result on all ranks; an FXError is raised on all of them.

    A collective call.
    """
    result: list[Any] = [None, None]
    if comm.is_main_process():
        try:
            result[0] = function()
        except FXError as error:
            result[1] = str(error)
    result = comm.all_gather(result)[0]
    if result[1] is not None:
        raise FXError(result[1])
    return result[0]
