"""Training: schedule, lock, optimizer, loop, checkpoints."""

from .checkpoint import FXCheckpointer, load_models
from .lock import apply_phase
from .schedule import PhaseSchedule, PhaseState, build_cycle
from .setup import build_cfg, setup_cfg, setup_run
from .trainer import FXTrainer

__all__ = [
    "FXCheckpointer",
    "FXTrainer",
    "PhaseSchedule",
    "PhaseState",
    "apply_phase",
    "build_cfg",
    "build_cycle",
    "load_models",
    "setup_cfg",
    "setup_run",
]
