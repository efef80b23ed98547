"""Preview of what a config trains: the passes of a cycle with parameters, images, steps and share of the compute.

Loads no images, allocates no weights, and needs no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate  # type: ignore[import-untyped]

from fx_d2.data import images_in_pass, register_rows
from fx_d2.data.catalog import split_name
from fx_d2.data.loaders import trained_tasks, training_dicts
from fx_d2.engine.convert import build_shapes
from fx_d2.engine.lock import describe_parameters, parameters_of, short_count
from fx_d2.engine.schedule import build_schedule
from fx_d2.modeling.analysis import component_costs
from fx_d2.structures import TASK_COMPONENTS, TASKS, DatasetSpec, FXError, Phase, spec_of, specs_of


@dataclass(frozen=True)
class PlannedPass:
    """A pass of the cycle.

    Attributes:
        phase: the phase of the pass.
        learning: number of trainable parameters, by component.
        frozen: number of parameters that take part but are frozen, by component.
        images: number of distinct images.
        steps: optimizer steps.
        flops: of all steps; see `phase_flops`.
    """

    phase: Phase
    learning: Mapping[str, int]
    frozen: Mapping[str, int]
    images: int
    steps: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """The first cycle of a run, and the number of cycles.

    Attributes:
        passes: passes of the first cycle, in order.
        cycles: number of cycles.
        published: datasets without an annotation file, for which published image counts are used.
        parameters: number of parameters of the whole model.
        remark: a note on the order of the datasets; may be empty.
    """

    passes: tuple[PlannedPass, ...]
    cycles: int
    published: tuple[str, ...]
    parameters: int
    remark: str

    def table(self) -> str:
        """The table, for a terminal 160 columns wide."""
        whole = sum(one.flops for one in self.passes)
        rows = [
            [
                str(number),
                one.phase.dataset,
                one.phase.task,
                one.phase.mode,
                describe_parameters(one.learning),
                describe_parameters(one.frozen),
                ("~" if one.phase.dataset in self.published else "") + f"{one.images:,}",
                f"{one.steps:,}",
                f"{100 * one.flops / whole:.1f} %",
            ]
            for number, one in enumerate(self.passes, 1)
        ]
        headers = ["pass", "dataset", "task", "mode", "learns", "frozen", "images", "steps", "time"]
        align = ["right", "left", "left", "left", "left", "left", "right", "right", "right"]
        return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align)

    def totals(self) -> str:
        """The lines below the table."""
        steps, slots = sum(one.steps for one in self.passes), {(p.phase.dataset, p.phase.task) for p in self.passes}
        images, flops = sum(one.images for one in self.passes), sum(one.flops for one in self.passes)
        lines = [
            f"a cycle: {len(self.passes)} passes in {len(slots)} slots (dataset, task), {images:,} images, "
            f"{steps:,} steps, {flops / 1e15:,.3g} PFLOP",
            f"the run: {self.cycles:,} cycles, {steps * self.cycles:,} iterations; the model has "
            f"{short_count(self.parameters)} parameters",
            "time: estimated from the share of the cycle's FLOPs (docs/training.md, Schedule)",
        ]
        if self.published:
            lines.append(
                "~: no annotation file; published number of images (of all splits if the release has none), assuming "
                "that all are annotated"
            )
        return "\n".join([*lines, self.remark] if self.remark else lines)


def build_plan(cfg: CfgNode) -> Plan:
    """The plan of a config. Writes nothing.

    Args:
        cfg: of a training run; its datasets are registered here.

    Raises:
        FXError: an error in the schedule, the dataset rows or the annotation files.
    """
    register_rows(cfg)
    sizes, published = count_images(cfg)
    seed = max(cfg.SEED, 0)
    schedule = build_schedule(cfg, sizes, seed)
    model, costs = build_shapes(cfg), _costs(cfg)
    passes = []
    for phase, steps in zip(schedule.phases, schedule.steps, strict=True):
        learning, frozen = parameters_of(model, phase)
        drawn = steps * cfg.SCHEDULE.BATCH_SIZE[phase.task.upper()]
        images = min(images_in_pass(sizes[phase.dataset, phase.task], phase.share), drawn)
        guided = cfg.MODEL.SEG.REGION.WEIGHT > 0 and "loc" in model.specs[phase.dataset].tasks
        flops = drawn * phase_flops(phase, costs, model.shared_components(phase), guided=guided)
        passes.append(PlannedPass(phase, learning, frozen, images, steps, flops))
    return Plan(
        passes=tuple(passes),
        cycles=schedule.cycles,
        published=tuple(published),
        parameters=sum(p.numel() for p in model.parameters()),
        remark=_remark(cfg, seed),
    )


def _remark(cfg: CfgNode, seed: int) -> str:
    if cfg.SCHEDULE.ORDER != "shuffled":
        return ""
    return f"SCHEDULE.ORDER shuffled: each cycle has its own order; this is that of the first with SEED {seed}"


def count_images(cfg: CfgNode) -> tuple[dict[tuple[str, str], int], list[str]]:
    """Numbers of annotated training images by (dataset, task), for the tasks trained on DATASETS.TRAIN.

    Returns:
        The counts from the annotation files, and the datasets without a file, for which published counts are used.

    Raises:
        FXError: neither a file nor a published count; otherwise see `training_dicts`.
    """
    sizes: dict[tuple[str, str], int] = {}
    published = []
    for registered in cfg.DATASETS.TRAIN:
        spec, file = spec_of(registered), Path(MetadataCatalog.get(registered).json_file)
        if file.is_file():
            dicts = training_dicts(cfg, registered)
            tasks = trained_tasks(cfg, spec)
            sizes |= {(spec.name, t): sum(bool(record["annotated"][t]) for record in dicts) for t in tasks}
            continue
        expected = dict(spec.expected)
        count = expected.get(split_name(registered)[1], expected.get("total", 0))
        if not count:
            raise FXError(
                f"{registered}: annotation file {str(file)!r} not found, and no published image count is known"
            )
        published.append(spec.name)
        sizes |= {(spec.name, task): min(count, cfg.DATASETS.LIMIT or count) for task in trained_tasks(cfg, spec)}
    return sizes, published


def phase_flops(phase: Phase, costs: Mapping[str, int], guides: Sequence[str], *, guided: bool = False) -> int:
    """FLOPs per image in a step of a phase: forward, backward, teacher.

    The backward pass costs twice the forward pass in a trainable component (gradients of inputs and weights), once in a
    frozen one that gradients must pass through, and nothing before the first trainable one.

    Args:
        phase: the phase.
        costs: FLOPs of one forward pass for one image, by component.
        guides: components whose teacher outputs are needed; the teacher runs up to the last of them.
        guided: whether segmentation is guided by the dataset's boxes (MODEL.SEG.REGION).
    """
    parts = TASK_COMPONENTS[phase.task]
    boxes = costs["loc_encoder"] + costs["loc_decoders"] if guided and phase.task == "seg" else 0
    total = boxes + sum(costs[part] for part in parts)
    reached = False
    for part in parts:
        if part in phase.trainable:
            reached = True
            total += costs[part]
        if reached:
            total += costs[part]
    if guides:
        last = max(parts.index(part) for part in guides)
        total += sum(costs[part] for part in parts[: last + 1]) + (boxes if "seg_decoder" in guides else 0)
    return total


def _costs(cfg: CfgNode) -> dict[str, int]:
    """FLOPs by component, with heads as large as the largest ones in DATASETS.TRAIN."""
    specs = specs_of(cfg.DATASETS.TRAIN)
    cls, loc, seg = (max((spec.classes(task) for spec in specs), key=len) or ("none",) for task in TASKS)
    largest = DatasetSpec("largest", "largest", cls_classes=cls, loc_classes=loc, seg_classes=seg)
    return {cost.component: cost.flops for cost in component_costs(cfg, largest, cfg.INPUT.SIZE)}
