"""What two CPU processes must agree on; writes OUT/report.json, then one of them dies and the other must not hang.

python tests/engine/two_processes.py CONFIG ROOT OUT --num-gpus 2
"""

import argparse
import functools
import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from fx_d2.batch import BOXES, Batch
from fx_d2.data import build_test_loader, build_train_data, register_datasets
from fx_d2.engine import FXTrainer, apply_phase, build_cfg, launch
from fx_d2.engine.accumulation import add_gradients, split_batch
from fx_d2.engine.trainer import build_schedule
from fx_d2.evaluation import evaluate_model
from fx_d2.evaluation.common import plain
from fx_d2.modeling import EMATeacher
from fx_d2.structures import FXError, Phase, specs_of

STILL = ("MODEL.TIMM.DROP_PATH", "0.0", "MODEL.SEG.DROPOUT", "0.0", "MODEL.LOC.DN_BOX_NOISE", "0.0",
         "MODEL.LOC.DN_LABEL_NOISE", "0.0", "MODEL.SEG.DIM", "32")  # fmt: skip
"""No randomness inside the model."""

SMALL = ("MODEL.LOC.HIDDEN_DIM", "64", "MODEL.LOC.GRAD_CHECKPOINTING", "True", "MODEL.TIMM.GRAD_CHECKPOINTING", "True")
"""Recomputed layers, and a width of which group norm takes one image on a map of 1 x 1."""

OPTIONS = (
    *(*SMALL, "SOLVER.MICRO_BATCH.CLS", "1", "SOLVER.MICRO_BATCH.LOC", "1", "SOLVER.MICRO_BATCH.SEG", "2"),
    *("SCHEDULE.BATCH_SIZE.SEG", "8", "MODEL.TEACHER.UPDATE", "step", "MODEL.TEACHER.SCHEDULE", "cosine"),
)
"""Gradients added up, and a teacher that follows the running statistics after each step."""


def make_cfg(args: argparse.Namespace, name: str, *opts: str) -> CfgNode:
    base = ["DATASETS.ROOT", args.opts[0], "OUTPUT_DIR", str(Path(args.opts[1]) / name)]
    cfg = build_cfg(args.config_file, [*base, *opts])
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def alone() -> mock._patch:
    """Inside, this process is a run of its own."""
    return mock.patch("torch.distributed.is_initialized", return_value=False)


def gradient_differences(
    args: argparse.Namespace, norm: str, dice: str, *opts: str, boxes: bool = True, most: int = 0
) -> dict[str, float]:
    """Per phase: averaged gradients of two processes against those of one with the joined batch, in float64.

    Without `boxes` no image of any process has one. The two take `most` images at a time.
    """
    cfg = make_cfg(args, "gradients", *STILL, "MODEL.SEG.NORM", norm, "MODEL.SEG.DICE", dice, *opts)
    data = build_train_data(cfg)
    schedule = build_schedule(cfg, data.sizes)
    torch.manual_seed(0)
    model = build_model(cfg).double()
    teacher = EMATeacher(model)
    # First weights leave queries tied, so that rounding decides which of them answers for a box.
    with torch.no_grad():
        for parameter in (*model.parameters(), *teacher.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    rank, world, found = comm.get_rank(), comm.get_world_size(), {}
    for iteration in range(schedule.cycle_length):
        state = schedule.at(iteration)
        if not state.first:
            continue
        loader = data.loader(schedule, iteration, rank=0, world_size=1, num_iters=1, seed=1)
        whole = _uneven(next(iter(loader)), boxes)
        size = len(whole) // world
        gradients = []
        for batch in (whole.part(rank * size, (rank + 1) * size), whole):
            apply_phase(model, state.phase)
            model.zero_grad(set_to_none=True)
            if len(batch) == size:
                _backward(DistributedDataParallel(model), teacher, batch, state.phase, most)
            else:
                with alone():
                    _backward(model, teacher, batch, state.phase, 0)
            gradients.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
        ours, joined = gradients
        assert set(ours) == set(joined) and ours
        found[str(state.phase)] = max(float((ours[k] - joined[k]).abs().max()) for k in ours)
    return found


def _uneven(batch: Batch, boxes: bool) -> Batch:
    """Unknown labels and masks in the first half, no box at all in the second: the halves count differently."""
    tensors = {key: x.clone() for key, x in batch.tensors.items()}
    if "labels" in tensors:
        tensors["labels"][0, 0] = float("nan")
    if "masks" in tensors:
        tensors["mask_known"][0, 1] = False
        tensors["mask_known"][1] = False
    kept = len(batch) // 2 if boxes else 0
    counts = tuple(count if i < kept else 0 for i, count in enumerate(batch.counts))
    tensors |= {key: tensors[key][: sum(counts)] for key in BOXES if key in tensors}
    return replace(batch, counts=counts, tensors=tensors)


def _backward(model: torch.nn.Module, teacher: EMATeacher, batch: Batch, phase: Phase, most: int) -> None:
    parts = split_batch(batch, most, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    add_gradients(model, parts, lambda part: model(part, teacher.guide(part, phase)), scaler)


class Gradients(HookBase):
    """Of each step the pieces of memory in which its gradients lie, the tensors that they are, and their norm; and, on
    the main process, the norm that is logged, which is a mean over the processes, of before clipping.
    """

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []
        self.norms: list[tuple[float, float]] = []

    def after_step(self) -> None:
        grads = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        self.counts.append((len({x.untyped_storage().data_ptr() for x in grads}), len(grads)))
        phase = self.trainer.schedule.at(self.trainer.iter).phase
        if comm.is_main_process() and not self.trainer.cfg.SOLVER.CLIP_NORM[phase.task.upper()]:
            logged, _ = self.trainer.storage.latest()[f"{phase.dataset}/{phase.task}/grad_norm"]
            self.norms.append((logged, float(torch.nn.utils.get_total_norm(grads))))


class Stop(HookBase):
    """Sends the second process, and only it, SIGTERM at an iteration."""

    def before_step(self) -> None:
        if comm.get_rank() == 1 and self.trainer.iter == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def train(cfg: CfgNode, resume: bool, *hooks: HookBase) -> FXTrainer:
    torch.manual_seed(comm.get_rank())  # ranks start apart: the run must join them
    trainer = FXTrainer(cfg)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def _states(trainer: FXTrainer) -> list[torch.Tensor]:
    return [v.clone() for m in (trainer.model, trainer.teacher) for v in m.state_dict().values()]


def training(args: argparse.Namespace) -> dict[str, object]:
    """A cycle with lock and release; the same, stopped inside a pass by a signal to one process, and resumed."""
    gradients, synchronize = Gradients(), torch.nn.parallel.distributed._sync_module_states
    with mock.patch("torch.nn.parallel.distributed._sync_module_states", side_effect=synchronize) as synchronized:
        whole = _states(train(make_cfg(args, "whole"), False, gradients))
    seeds = comm.all_gather(torch.initial_seed())
    ranks = comm.gather(whole)
    options = comm.gather(_states(train(make_cfg(args, "options", *OPTIONS), resume=False)))
    try:
        train(make_cfg(args, "stopped"), False, Stop())
        code: object = "not stopped"
    except SystemExit as stop:
        code = stop.code
    resumed = train(make_cfg(args, "stopped"), resume=True)
    try:
        train(make_cfg(args, "stopped"), resume=False)
        refused = ""
    except FXError as error:
        refused = str(error)
    return {
        "tensors": len(whole),
        "synchronized": synchronized.call_count,
        "gradients": gradients.counts,
        "norms": gradients.norms,
        "seeds": seeds,
        "ranks_equal": all(map(torch.equal, *ranks)) if ranks else True,
        "ranks_equal_with_options": all(map(torch.equal, *options)) if options else True,
        "codes": comm.all_gather(code),
        "resumed_at": comm.all_gather(resumed.start_iter),
        "resumed_equal": all(comm.all_gather(all(map(torch.equal, whole, _states(resumed))))),
        "refused": comm.all_gather(refused),
    }


def evaluation(args: argparse.Namespace) -> dict[str, object]:
    """Five images over two processes: each counts once, and the numbers are those of one process."""
    names, models = ("alpha_test",), {}
    results = {}
    for kind in ("together", "alone"):
        # Batches of one: what a model gives for an image depends, in the last bits, on the images beside it.
        cfg = make_cfg(args, kind, "DATASETS.LIMIT", "5", "TEST.BATCH_SIZE", "1")
        loaders = {name: functools.partial(build_test_loader, cfg, name) for name in names}
        if not models:
            torch.manual_seed(0)
            models["student"] = build_model(cfg)
        if kind == "alone":
            with alone():
                results[kind] = plain(asdict(evaluate_model(cfg, models, loaders, specs_of(names))))
        else:
            results[kind] = plain(asdict(evaluate_model(cfg, models, loaders, specs_of(names))))
    return results


def main(args: argparse.Namespace) -> None:
    report = {
        "world_size": comm.get_world_size(),
        "gradients": {
            f"{norm} {dice}": gradient_differences(args, norm, dice)
            for norm, dice in (("GN", "class"), ("naiveSyncBN", "batch"), ("BN", "class"))
        }
        | {"GN, no box at all": gradient_differences(args, "GN", "class", boxes=False)}
        | {"GN in parts": gradient_differences(args, "GN", "class", *SMALL, most=1)},
        "training": training(args),
        "evaluation": evaluation(args),
    }
    if comm.is_main_process():
        (Path(args.opts[1]) / "report.json").write_text(json.dumps(report))
    comm.synchronize()
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


if __name__ == "__main__":
    parsed = default_argument_parser().parse_args(["--config-file", sys.argv[1], *sys.argv[4:], *sys.argv[2:4]])
    parsed.dist_url = "auto"
    launch(main, parsed, "cpu")
