"""The trainer: steps of the phases that the schedule determines, with student, teacher and one optimizer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fx_d2.batch import Batch
from fx_d2.data import build_train_data
from fx_d2.engine.accumulation import add_gradients, check_parts, split_batch
from fx_d2.engine.checkpoint import FXCheckpointer, begin, read_checkpoint
from fx_d2.engine.checkpoint_files import newest_sound, numbered, remove_leftovers
from fx_d2.engine.compiling import compile_layers
from fx_d2.engine.distributed import on_first
from fx_d2.engine.folder_lock import hold_folder
from fx_d2.engine.guards import check_components, check_disk, check_start, check_values
from fx_d2.engine.hooks import build_hooks
from fx_d2.engine.lock import apply_phase, running_statistics
from fx_d2.engine.optimizer import build_lr_schedule, build_optimizer
from fx_d2.engine.precision import amp_dtype, step_unless_overflown
from fx_d2.engine.resume import require_same_run
from fx_d2.engine.saving import RunSaver
from fx_d2.engine.schedule import PhaseState, build_schedule, check_schedule
from fx_d2.engine.signals import StopRequest
from fx_d2.layers.processes import copy_from_first
from fx_d2.modeling import EMATeacher, FoundationX
from fx_d2.modeling.teacher import build_momentum
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

Evaluate = Callable[[Mapping[str, nn.Module], bool], Mapping[str, float]]
"""({"student": ..., "teacher": ...}, whether training is over) -> metrics; a collective call."""


class FXTrainer(TrainerBase):
    """Cyclic Lock-Release training on Detectron2's loop and hooks.

    Args:
        cfg: frozen.
        evaluate: called as set by TEST.EVAL_PASSES and TEST.EVAL_CYCLES, and at the end of training.

    Attributes:
        step_losses: losses of the last step and their sum "total_loss", averaged over processes; main process only.
    """

    def __init__(self, cfg: CfgNode, evaluate: Evaluate | None = None) -> None:
        super().__init__()
        PathManager.mkdirs(cfg.OUTPUT_DIR)
        self.cfg, self.evaluate = cfg, evaluate
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        check_values(cfg)
        check_schedule(cfg)
        self.data = build_train_data(cfg)
        self.schedule = build_schedule(cfg, self.data.sizes, self.seed)
        self.start_iter, self.max_iter = 0, self.schedule.total
        # All ranks start from the same weights; DDP would synchronise those of the student, but not of the teacher.
        seed_all_rng(self.seed)
        self.model: FoundationX = build_model(cfg)
        check_components(self.model)
        self.optimizer = build_optimizer(cfg, self.model)
        self.lr_schedule = build_lr_schedule(cfg, self.optimizer, self.schedule)
        self.teacher = EMATeacher(self.model) if self.model.consistency > 0 else None
        compile_layers(self.model, cfg.MODEL.COMPILE)
        if self.teacher is not None:
            compile_layers(self.teacher.model, cfg.MODEL.COMPILE)
        self.momentum = build_momentum(cfg)
        self.amp_dtype = amp_dtype(cfg)
        device = self.model.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp_dtype == torch.float16)
        state = {"optimizer": self.optimizer, "scheduler": self.lr_schedule, "scaler": self.scaler}
        if self.teacher is not None:
            state["teacher"] = self.teacher
        self.checkpointer = FXCheckpointer(self.model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process(), **state)
        self.saver, self.stop_request = RunSaver(self), StopRequest()
        self.stopping, self.evaluated = False, 0
        check_start(cfg, self.model, self.schedule, self.data, with_tests=evaluate is not None)
        check_parts(cfg, self.model)
        self._held = ExitStack()
        self._wrapped: nn.Module = self.model
        self._learning: list[nn.Parameter] = []
        self._statistics: list[Tensor] = []
        self.step_losses: dict[str, float] = {}
        self._batches: Iterator[Batch] = iter(())
        self.register_hooks(build_hooks(self))

    def resume_or_load(self, resume: bool, *, look_only: bool = False) -> None:
        """Resume the run in OUTPUT_DIR exactly, or start a new one from MODEL.WEIGHTS or from random weights.

        With `resume` and no checkpoint yet, a new run is started, so a job that is requeued can always use the same
        command. OUTPUT_DIR is locked from here to the end of `train`. A collective call.

        Args:
            resume: whether to resume from checkpoints in OUTPUT_DIR.
            look_only: do not lock or modify OUTPUT_DIR, not even to rename damaged checkpoints.

        Raises:
            FXError: another run is active in OUTPUT_DIR; it contains checkpoints and `resume` is not set, all of them
                are damaged, or the last one belongs to another run.
        """
        folder = Path(self.cfg.OUTPUT_DIR)
        with ExitStack() as held:
            if not look_only:
                # Before reading: another run could write while this one selects its checkpoint.
                held.enter_context(hold_folder(folder))
            last = on_first(lambda: self._last_checkpoint(folder, resume, look_only))
            if last is not None:
                self._resume_from(last)
            else:
                begin(self.cfg, self.model, self.schedule.phases)
                if self.teacher is not None:
                    self.teacher.model.load_state_dict(self.model.state_dict())
            self._held = held.pop_all()

    def _resume_from(self, path: Path) -> None:
        """Restore the state of the run from one of its checkpoints."""
        content = read_checkpoint(str(path))
        # First of all: for another run, the error from loading its optimizer would be less clear.
        require_same_run(content, self.saver.record, str(path))
        rest = self.checkpointer.restore(content, str(path))
        self.start_iter, self.seed, self.evaluated = rest["iteration"] + 1, rest["seed"], rest["evaluated"]
        self.saver.best = rest["best"]
        self.schedule.take_seed(self.seed)  # in place, since the learning rates depend on it as well
        logger.info("resuming at iteration %d of %d", self.start_iter, self.max_iter)

    @staticmethod
    def _last_checkpoint(folder: Path, resume: bool, look_only: bool) -> Path | None:
        """The checkpoint to resume from, or None for a new run; FXError if a run would be overwritten."""
        if not resume:
            there = numbered(folder)
            if there:
                name = list(there.values())[-1].name
                raise FXError(
                    f"OUTPUT_DIR {folder} holds the checkpoints of a run, the last is {name}: continue it with "
                    "--resume, or choose another OUTPUT_DIR"
                )
            return None
        if not look_only:
            remove_leftovers(folder)
        last = newest_sound(folder, set_aside=not look_only)
        if last is None:
            logger.warning("--resume: no checkpoint in %s yet, starting a new run", folder)
        return last

    def models(self) -> dict[str, nn.Module]:
        """The models of TEST.MODELS that exist: student, teacher."""
        present: dict[str, nn.Module] = {"student": self.model}
        if self.teacher is not None:
            present["teacher"] = self.teacher.model
        return {name: model for name, model in present.items() if name in self.cfg.TEST.MODELS}

    def train(self) -> None:  # type: ignore[override]
        """Train from `start_iter` to the end of the schedule.

        Raises:
            FXError: not enough disk space for checkpoints, or an error in a step.
            SystemExit: with `signals.EXIT_CODE`, after a stop signal.
        """
        if self.start_iter < self.max_iter:
            on_first(lambda: check_disk(self.cfg, self.model, self.teacher))
        loader = self.data.loader(
            self.schedule,
            start_iter=self.start_iter,
            num_iters=self.max_iter - self.start_iter,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            seed=self.seed,
        )
        self.feed(loader)
        try:
            super().train(self.start_iter, self.max_iter)
        finally:
            self.feed(())  # lets the workers exit
            self._held.close()

    def feed(self, batches: Iterable[Batch]) -> None:
        """Set the source of batches for the next steps."""
        self._batches = iter(batches)

    def enter_phase(self, state: PhaseState) -> None:
        """Apply the lock of the pass that starts (or, in a resumed run, continues) here."""
        apply_phase(self.model, state.phase)
        self._learning = [p for p in self.model.parameters() if p.requires_grad]
        self._statistics = running_statistics(self.model)
        if comm.get_world_size() > 1:
            # DDP's reducer only handles parameters that required grad when it was built: keeping it across a release
            # would let the ranks diverge silently.
            device = self.model.device
            self._wrapped = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                init_sync=self._wrapped is self.model,  # only once: equal steps keep the models equal
                forward_sync_buffers=False,  # synchronised at the end of the step
                gradient_as_bucket_view=True,  # no second copy of the gradients
            )

    def leave_phase(self) -> None:
        """Update the teacher at the end of a pass, unless it is updated after each step."""
        if not self.momentum.per_step:
            self._update_teacher()

    def _update_teacher(self) -> None:
        if self.teacher is None:
            return
        state, passes = self.schedule.at(self.iter), len(self.schedule.phases)
        updates = self.iter if self.momentum.per_step else state.cycle * passes + state.pass_index
        self.teacher.update(self.momentum.at(self.iter / self.max_iter, updates))

    def run_step(self) -> None:
        """Forward, backward, clip, step."""
        state = self.schedule.at(self.iter)
        started = time.perf_counter()
        batch = next(self._batches)
        data_time = time.perf_counter() - started
        # Randomness is a function of (seed, rank, iteration), so a resumed run samples the same values.
        words = np.random.SeedSequence((self.seed, comm.get_rank(), self.iter)).generate_state(2)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        self.optimizer.zero_grad(set_to_none=True)
        parts = split_batch(batch, self.cfg.SOLVER.MICRO_BATCH[state.phase.task.upper()], self.model.device)
        losses = add_gradients(self._wrapped, parts, lambda part: self._forward(part, state), self.scaler)
        norm = self._clip(state.phase.task)
        finite = self._record(losses, norm, data_time, state, batch)
        scale = step_unless_overflown(self.scaler, self.optimizer, finite)
        if scale is not None and comm.is_main_process():
            self.storage.put_scalar("loss_scale", scale, smoothing_hint=False)
        # Keeps the students, and thus the teachers, equal on all ranks.
        copy_from_first(self._statistics)
        if self.momentum.per_step:
            self._update_teacher()

    def _forward(self, batch: Batch, state: PhaseState) -> dict[str, Tensor]:
        """Losses of a batch, or of a part of it, which is moved to the device here."""
        batch = batch.to(self.model.device)
        with torch.autocast(self.model.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            guide = self.teacher.guide(batch, state.phase) if self.teacher is not None else {}
            try:
                return self._wrapped(batch, guide)
            except FloatingPointError as error:
                raise FXError(f"{error} {self._whereabouts(state, batch)}") from error

    def _whereabouts(self, state: PhaseState, batch: Batch) -> str:
        """Iteration, phase and images of a step, for error messages."""
        files = ", ".join(x["file_name"] for x in batch.samples)
        return f"at iteration {self.iter} in {state.phase}; images: {files}"

    def _clip(self, task: str) -> Tensor:
        """Clip gradients to SOLVER.CLIP_NORM of the task, unless that is 0; returns the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        limit = self.cfg.SOLVER.CLIP_NORM[task.upper()]
        norm = nn.utils.get_total_norm([p.grad for p in self._learning if p.grad is not None])
        if limit > 0:
            nn.utils.clip_grads_with_norm_(self._learning, limit, norm)
        return norm

    def _record(
        self, losses: dict[str, Tensor], norm: Tensor, data_time: float, state: PhaseState, batch: Batch
    ) -> bool:
        """Record the step's metrics; raise on a loss or gradient that is not finite, before it reaches the weights.

        Returns whether the gradient is finite: with float16 it may overflow, which the loss scaler handles.

        Metrics are averaged over processes. The same all-reduce carries whether any process received a stop signal, so
        all of them learn of it at the same step.
        """
        stop = norm.new_full((), float(bool(self.stop_request.received)))
        numbers = torch.stack([x.float() for x in (*losses.values(), norm, stop)])
        own = numbers[: len(losses)].sum(0, keepdim=True)
        world = comm.get_world_size()
        if world > 1:
            torch.distributed.all_reduce(numbers)
        *values, mean_norm, stops, total = torch.cat((numbers / world, own)).tolist()
        scalars = dict(zip(losses, values, strict=True))
        if not math.isfinite(total):
            raise FXError(f"the loss is not finite {self._whereabouts(state, batch)}; losses: {scalars}")
        if not math.isfinite(sum(values)):
            raise FXError(f"the loss of another process is not finite at iteration {self.iter} in {state.phase}")
        finite = math.isfinite(mean_norm)
        if not finite and not self.scaler.is_enabled():
            raise FXError(f"the gradient is not finite {self._whereabouts(state, batch)}; losses: {scalars}")
        self.stopping = stops > 0
        if comm.is_main_process():
            self.step_losses = scalars | {"total_loss": sum(values)}
            slot = f"{state.phase.dataset}/{state.phase.task}"
            named = {f"{slot}/{name}": value for name, value in self.step_losses.items()}
            named |= {f"{slot}/grad_norm": mean_norm, "data_time": data_time}
            self.storage.put_scalars(**self.step_losses, **named, smoothing_hint=False)
        return finite
