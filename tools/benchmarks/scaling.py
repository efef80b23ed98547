#!/usr/bin/env python
"""Theoretical cost of the recipe: FLOPs and bytes of a step, its bottleneck, hours of a cycle, communication.

tools/benchmarks/scaling.py            prints the section of docs/performance.md
tools/benchmarks/scaling.py --write    writes it to that file

Nothing is measured and no weights are allocated: the model runs forward and backward on fake tensors under bfloat16
autocast, and its operators are counted. The criterion (matching and losses) is not included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tools"))

from benchmarks.cycle import label, pass_steps, passes  # noqa: E402
from benchmarks.report import markdown_table  # noqa: E402
from benchmarks.world import AS_RECOMMENDED, CONFIG  # noqa: E402
from fx_d2.data.table import BY_NAME, PRETRAINING  # noqa: E402
from fx_d2.engine import apply_phase, build_cfg, build_cycle  # noqa: E402
from fx_d2.modeling import FoundationX  # noqa: E402
from fx_d2.modeling.detr.denoising import NoisedQueries  # noqa: E402
from fx_d2.structures import DatasetSpec, Phase  # noqa: E402

DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: tools/benchmarks/scaling.py -->", "<!-- end: tools/benchmarks/scaling.py -->"
DATASET, BATCH, SIZE, KNOWN = "chestx_det", 24, 224, 198
"""Dataset whose heads are counted; images per step and GPU; image side; denoising queries (three boxes per image)."""

_COUNTED = ("MODEL.DEVICE", "cpu", "MODEL.LOC.SAMPLER", "torch")
"""torch cannot count the FLOPs of custom operators (C++, Triton), so torch's sampler is counted instead."""

PEAK, REACHED = 990e12, 0.4
"""bfloat16 FLOP/s of an H100 or H200, and the fraction that such models reach."""
BANDWIDTH, MOVED = {"H100": 3.35e12, "H200": 4.8e12}, 0.7
"""Memory bandwidth in bytes/s, and the fraction that is reached."""
LAUNCH = 5e-6
"""Seconds the host needs to launch an operator."""
PASSES = 4
"""Memory transfers per byte kept for the backward pass: written, read by the next operator, read again, and its
gradient."""
OPTIMIZER_BYTES, WEIGHT_BYTES = 28, 12
"""Bytes moved per step for each trainable parameter (AdamW reads four and writes three float32), and for each parameter
in use (float32 weights, read and cast to bfloat16 in the forward and the backward pass)."""
LINKS = {1: 0.0, 8: 450e9, 64: 50e9}
"""Number of GPUs -> bytes/s of a GPU's link: within a machine, and between machines (400 Gbit/s per GPU)."""


@dataclass
class StepCost:
    """Cost of one kind of step for BATCH images: FLOPs, bytes kept for the backward pass, operators; parameters in use,
    and trainable ones."""

    flops: int = 0
    saved: int = 0
    operators: int = 0
    used: int = 0
    learning: int = 0

    def seconds(self, gpu: str) -> dict[str, float]:
        """Seconds of a step for each possible bottleneck, if it were the only one."""
        moved = PASSES * self.saved + WEIGHT_BYTES * self.used + OPTIMIZER_BYTES * self.learning
        return {
            "arithmetic": self.flops / (PEAK * REACHED),
            "memory": moved / (BANDWIDTH[gpu] * MOVED),
            "launches": self.operators * LAUNCH,
        }


class _Operators(TorchDispatchMode):
    """Counts the operators that return new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        gives = [value for value in func._schema.returns if "Tensor" in str(value.type)]
        self.count += bool(gives) and not any(value.alias_info and not value.alias_info.is_write for value in gives)
        return func(*args, **(kwargs or {}))


def config() -> CfgNode:
    """The recipe with the recommended settings and countable operators."""
    cfg = build_cfg(str(CONFIG), [*AS_RECOMMENDED, *_COUNTED, "INPUT.SIZE", str([SIZE, SIZE])])
    cfg.MODEL.TIMM.KWARGS.pop("pretrained", None)
    return cfg


def step_costs(cfg: CfgNode, kinds: Collection[str] = ()) -> dict[str, StepCost]:
    """Cost of each kind of step on DATASET, in the order of the recipe; only of `kinds` if given."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg, specs=[BY_NAME[DATASET]])
    with fake:
        model = model.to_empty(device="cpu")
        phases = build_cycle([BY_NAME[DATASET]], cfg.SCHEDULE.STRATEGY)
        return {label(p): _cost(model, p) for p in phases if not kinds or label(p) in kinds}


def _cost(model: FoundationX, phase: Phase) -> StepCost:
    apply_phase(model, phase)
    model.zero_grad(set_to_none=True)
    cost, images = StepCost(), torch.empty(BATCH, 1, SIZE, SIZE)
    modules = [m for part in model.modules_of(phase.dataset, phase.task).values() for m in part]
    parameters = {p for m in modules for p in m.parameters()}
    cost.used, cost.learning = (
        sum(p.numel() for p in ps) for ps in (parameters, [p for p in parameters if p.requires_grad])
    )
    weights = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    def student() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = _outputs(model, phase, images)
        loss = torch.stack([x.float().sum() for x in outputs]).sum()
        cost.saved = sum(x.untyped_storage().nbytes() for x in kept.values())
        loss.backward()

    def teacher() -> None:
        wanted = model.shared_components(phase)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            _shared(model, phase.task, images, wanted)

    for run in (student, teacher):
        flops, operators = _count(run)
        cost.flops, cost.operators = cost.flops + flops, cost.operators + operators
    return cost


def _shared(model: FoundationX, task: str, images: torch.Tensor, wanted: list[str]) -> None:
    """Run the teacher's part of a step."""
    if wanted:
        features = model.backbone(images)
        if "loc_encoder" in wanted:
            model.loc_encoder(model.backbone.levels(features), None)
        if "seg_decoder" in wanted:
            model.seg_decoder(list(features.values()))


def _outputs(model: FoundationX, phase: Phase, images: torch.Tensor) -> list[torch.Tensor]:
    """The inputs of the losses."""
    features = model.backbone(images)
    if phase.task == "cls":
        return [model.cls_heads[phase.dataset](model.backbone.pooled(features))]
    if phase.task == "seg":
        return [model.seg_heads[phase.dataset](model.seg_decoder(list(features.values())))]
    decoder = model.loc_decoders[phase.dataset]
    known, total = KNOWN, KNOWN + decoder.num_queries
    labels = torch.zeros(BATCH, known, dtype=torch.int64)
    references, real = torch.zeros(BATCH, known, 4), torch.ones(BATCH, known, dtype=torch.bool)
    noised = NoisedQueries(labels, references, real, torch.zeros(total, total, dtype=torch.bool), known // 6)
    out = decoder(model.loc_encoder(model.backbone.levels(features), None), noised)
    return [out.logits, out.boxes, out.proposal_logits, out.proposal_boxes]


def _count(function: Callable[[], None]) -> tuple[int, int]:
    """FLOPs and number of operators of a function."""

    def samples(*shapes: Any, out_shape: Any, **others: Any) -> int:
        return 10 * torch.Size(out_shape).numel()

    def samples_back(gradient: Any, *shapes: Any, **others: Any) -> int:
        return 20 * torch.Size(gradient).numel()

    aten = torch.ops.aten
    mapping: dict[Any, Any] = {aten.grid_sampler_2d: samples, aten.grid_sampler_2d_backward: samples_back}
    with _Operators() as operators, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return counter.get_total_flops(), operators.count


def cost_row(kind: str, cost: StepCost) -> list[str]:
    """One row of the section's first table."""
    row = [kind, f"{cost.flops / BATCH / 1e9:.1f}", f"{cost.saved / BATCH / 1e6:.0f}", f"{cost.operators:,}"]
    return [*row, f"{cost.used / 1e6:.1f}", f"{cost.learning / 1e6:.2f}", f"{4 * cost.learning / 1e6:.1f}"]


def section() -> str:
    """The Markdown between the markers in docs/performance.md."""
    cfg = config()
    costs = step_costs(cfg)
    every = list(passes(PRETRAINING, cfg.SCHEDULE))
    kinds = [cost_row(kind, cost) for kind, cost in costs.items()]
    bounds = []
    for kind, cost in costs.items():
        for gpu in BANDWIDTH:
            parts = cost.seconds(gpu)
            slowest = max(parts, key=lambda name: parts[name])
            rate = BATCH / parts[slowest]
            bounds.append([kind, gpu, *(f"{1000 * x:.1f}" for x in parts.values()), slowest, f"{rate:,.0f}"])
    hours = [[str(gpus), gpu, *_hours(costs, every, gpus, gpu)] for gpus in LINKS for gpu in BANDWIDTH]
    unsplit = [spec.title for spec in PRETRAINING if "train" not in dict(spec.expected)]
    head = [
        "kind of step",
        "GFLOP/image",
        "saved, MB/image",
        "operators/step",
        "parameters, M",
        "trainable, M",
        "all-reduced, MB",
    ]
    return "\n\n".join(
        [
            f"Swin-B, {SIZE} pixels, {BATCH} images per GPU and step, bfloat16 autocast, 300 queries and {KNOWN} for "
            "denoising, including the teacher's forward pass. "
            '"Saved" are the tensors that autograd keeps for the backward pass. '
            "A locked step all-reduces only the gradients of its head.",
            markdown_table(head, kinds),
            "Milliseconds of a step if it were bound by arithmetic, memory traffic or launches alone, and images per "
            "second at the slowest of the three:",
            markdown_table(["kind of step", "GPU", "arithmetic", "memory", "launches", "bound", "images/s"], bounds),
            "Hours of a cycle over the eleven datasets and of a run of 150 cycles, and the share of communication. "
            f"Every GPU takes {BATCH} images per step, so the batch grows with the number of GPUs:",
            markdown_table(["GPUs", "GPU", "steps/cycle", "h/cycle", "communication", "h/150 cycles"], hours),
            f"Image counts are those published for the training splits; {', '.join(unsplit)} are published without "
            "splits and count in full.",
        ]
    )


def _hours(costs: dict[str, StepCost], every: list[tuple[Phase, DatasetSpec]], gpus: int, gpu: str) -> list[str]:
    steps, compute, talk = 0, 0.0, 0.0
    for phase, spec in every:
        count = pass_steps(phase, spec, BATCH * gpus)
        cost = costs[label(phase)]
        steps += count
        compute += count * max(cost.seconds(gpu).values())
        if gpus > 1:
            talk += count * 2 * (gpus - 1) / gpus * 4 * cost.learning / LINKS[gpus]
    cycle = (compute + talk) / 3600
    return [f"{steps:,}", f"{cycle:.3f}", f"{100 * talk / (compute + talk):.0f} %", f"{150 * cycle:.1f}"]


def main() -> int:
    """Print the section, or write it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the section to docs/performance.md")
    args = parser.parse_args()
    text = section()
    if not args.write:
        print(text)
        return 0
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
