"""Training: schedule, locking, optimizer, training loop, checkpoints."""

from fx_d2.engine.checkpoint import FXCheckpointer, load_models
from fx_d2.engine.distributed import launch
from fx_d2.engine.lock import apply_phase
from fx_d2.engine.resume import versions
from fx_d2.engine.schedule import PhaseSchedule, PhaseState, build_cycle
from fx_d2.engine.setup import build_cfg, setup_cfg, setup_run
from fx_d2.engine.trainer import FXTrainer

__all__ = [
    "FXCheckpointer",
    "FXTrainer",
    "PhaseSchedule",
    "PhaseState",
    "apply_phase",
    "build_cfg",
    "build_cycle",
    "launch",
    "load_models",
    "setup_cfg",
    "setup_run",
    "versions",
]
