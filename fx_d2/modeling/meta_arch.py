"""Foundation X: one backbone, a shared localization encoder and segmentation decoder, and heads per dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.batch import TARGETS as BATCH_TARGETS
from fx_d2.batch import Batch
from fx_d2.layers.precision import at_least_float32
from fx_d2.losses import Targets, classification_loss, consistency_loss, dice_loss
from fx_d2.modeling.backbone import TimmBackbone, normalize_images
from fx_d2.modeling.detr.decoder import LocDecoder
from fx_d2.modeling.detr.encoder import LocEncoder, Memory
from fx_d2.modeling.heads import build_head, build_shared
from fx_d2.modeling.localization import LocSettings, build_settings, localization_losses, select_boxes
from fx_d2.modeling.region_guidance import Regions, RegionSettings, build_regions, find_regions, guide_features
from fx_d2.modeling.segmentation import SegDecoder, original_masks
from fx_d2.modeling.shared import SharedPass
from fx_d2.structures import (
    HEAD_COMPONENTS,
    SHARED_COMPONENTS,
    TASK_COMPONENTS,
    DatasetSpec,
    FXError,
    Phase,
    specs_of,
)

Samples = Batch | Sequence[dict[str, Any]]
"""Model input: a loader's Batch, or samples to collate into one."""


@META_ARCH_REGISTRY.register()
class FoundationX(nn.Module):
    """The student model. Its children are exactly COMPONENTS; heads and decoders are keyed by dataset name.

    Freezing needs no code here: frozen parameters do not require grad (`engine.lock`), so autograd records nothing for
    a frozen component unless a trainable one precedes it.

    Args:
        specs: dataset rows (`DatasetSpec`) whose heads are built.
        backbone: shared by all tasks.
        cls_heads: dataset name -> Linear.
        loc_encoder: shared encoder, or None when no dataset has boxes.
        loc_decoders: dataset name -> LocDecoder.
        seg_decoder: shared decoder, or None when no dataset has masks.
        seg_heads: dataset name -> convolution.
        loc: hyper-parameters of the localization branch.
        regions: settings of box-guided segmentation.
        dice_per_class: see `losses.dice_loss`.
        consistency: c in (1 - c) * task + c * consistency; 0 without a teacher.
        pixel_mean: grey mean, in [0, 255].
        pixel_std: grey standard deviation, in [0, 255].
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        specs: Sequence[DatasetSpec],
        backbone: TimmBackbone,
        cls_heads: Mapping[str, nn.Module],
        loc_encoder: LocEncoder | None,
        loc_decoders: Mapping[str, nn.Module],
        seg_decoder: SegDecoder | None,
        seg_heads: Mapping[str, nn.Module],
        loc: LocSettings,
        regions: RegionSettings,
        dice_per_class: bool,
        consistency: float,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.specs = {spec.name: spec for spec in specs}
        self.backbone = backbone
        self.cls_heads = nn.ModuleDict(cls_heads)
        self.loc_encoder = loc_encoder
        self.loc_decoders = nn.ModuleDict(loc_decoders)
        self.seg_decoder = seg_decoder
        self.seg_heads = nn.ModuleDict(seg_heads)
        self.loc, self.regions = loc, regions
        self.dice_per_class = dice_per_class
        self.consistency = consistency
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, specs: Sequence[DatasetSpec] | None = None) -> dict[str, Any]:
        """Constructor arguments; heads follow from `specs`, by default the dataset rows of DATASETS.TRAIN."""
        specs = specs_of(cfg.DATASETS.TRAIN) if specs is None else specs
        backbone = build_backbone(cfg)
        channels = backbone.channels
        if cfg.MODEL.SEG.DICE not in ("batch", "class"):
            raise FXError(f"MODEL.SEG.DICE is {cfg.MODEL.SEG.DICE!r}: choose batch or class")
        tasks = {task for spec in specs for task in spec.tasks}
        arguments = {
            "specs": specs,
            "backbone": backbone,
            "loc_encoder": build_shared(cfg, "loc", channels) if "loc" in tasks else None,
            "seg_decoder": build_shared(cfg, "seg", channels) if "seg" in tasks else None,
            "loc": build_settings(cfg),
            "regions": build_regions(cfg),
            "dice_per_class": cfg.MODEL.SEG.DICE == "class",
            "consistency": cfg.MODEL.TEACHER.CONSISTENCY if cfg.MODEL.TEACHER.ENABLED else 0.0,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
        for task, component in HEAD_COMPONENTS.items():
            own = [spec for spec in specs if task in spec.tasks]
            arguments[component] = {spec.name: build_head(cfg, task, spec, channels) for spec in own}
        return arguments

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def forward(self, batch: Samples, guide: Mapping[str, Tensor] | None = None) -> Any:
        """Losses in training mode, results in evaluation mode.

        Args:
            batch: of one dataset; in training also of one task. A Batch, or samples with the mappers' keys: "dataset",
                "task" (training), "image" uint8 (1, H, W), "height", "width", and per task "labels" (C,), NaN =
                unknown; "instances"; "masks" (C, H, W), "mask_known" (C,), "mask_valid" (H, W). In evaluation an
                optional list "tasks" limits what is computed.
            guide: from `EMATeacher.guide`; adds the consistency losses.

        Returns:
            Training: {"loss_{task}_{term}": scalar}. Evaluation: one dict per image with, for the dataset's tasks,
            "cls" (C,) probabilities; "instances" in original pixels; "seg" (C, H, W) probabilities at network input
            size and "masks" bool (C, height, width) at original size.
        """
        if not self.training:
            return self.inference(batch)
        batch = self._on_device(batch)
        task = batch.one("task")
        shared = SharedPass(self, batch, task)
        losses = {f"loss_{task}_{key}": value for key, value in self._task_losses(batch, shared).items()}
        if self.consistency:
            losses = {key: (1 - self.consistency) * value for key, value in losses.items()}
        if guide:
            weight = self.consistency / len(guide)
            for component, target in guide.items():
                name = f"loss_{task}_consistency_{component}"
                losses[name] = weight * consistency_loss(shared.compared(component), target)
        return losses

    def _task_losses(self, batch: Batch, shared: SharedPass) -> dict[str, Tensor]:
        """Unweighted losses of the task."""
        if shared.task == "cls":
            logits = self.cls_heads[shared.dataset](shared.pooled)
            return {"bce": classification_loss(logits, batch.tensors["labels"])}
        if shared.task == "loc":
            targets = Targets.of_batch(batch.tensors["classes"], batch.tensors["boxes"], batch.counts)
            decoder = cast(LocDecoder, self.loc_decoders[shared.dataset])
            return localization_losses(decoder, shared.memory, targets, self.loc)
        masks, known, valid = (batch.tensors[key] for key in BATCH_TARGETS["seg"])
        logits = self._upsample(self.seg_heads[shared.dataset](shared.fused), masks.shape[-2:])
        return {"dice": dice_loss(logits, masks, known, valid, self.dice_per_class)}

    def shared_outputs(self, batch: Samples, task: str, wanted: Iterable[str], view: str) -> dict[str, Tensor]:
        """Outputs of shared components for a batch: the teacher's side of the consistency losses.

        Args:
            batch: as in `forward`.
            task: decides which tensor represents a component, see `SharedPass.compared`.
            wanted: shared components; nothing beyond them runs.
            view: key of the images to use; falls back to "image" if the samples do not have it.
        """
        shared = SharedPass(self, self._on_device(batch), task, view)
        return {component: shared.compared(component) for component in wanted}

    def inference(self, batch: Samples) -> list[dict[str, Any]]:
        """Results for the requested tasks of the batch's dataset; see `forward`."""
        batch = self._on_device(batch)
        dataset = batch.one("dataset")
        if dataset not in self.specs:
            raise FXError(f"the model has no heads for dataset {dataset!r}; it has {sorted(self.specs)}")
        tasks = set(batch.samples[0].get("tasks", TASK_COMPONENTS)) & set(self.specs[dataset].tasks)
        return [found[dataset] for found in self.predict(batch, {dataset: tasks})]

    @torch.no_grad()
    def predict(self, batch: Samples, wanted: Mapping[str, Iterable[str]]) -> list[dict[str, dict[str, Any]]]:
        """Results of the heads of several datasets; the backbone and the shared components run once.

        Args:
            batch: samples with "image", "height" and "width", as in `forward`.
            wanted: dataset -> tasks to compute, each of which the dataset must have.

        Returns:
            Per image {dataset: what `forward` returns for it in evaluation}.
        """
        batch = self._on_device(batch)
        features, padding = self.features(batch, "image")
        sizes = [(x["height"], x["width"]) for x in batch.samples]
        results: list[dict[str, dict[str, Any]]] = [{name: {} for name in wanted} for _ in sizes]
        for name, outputs in self.run_heads(features, padding, wanted).items():
            mine = [result[name] for result in results]
            if "cls" in outputs:
                for result, row in zip(mine, outputs["cls"], strict=True):
                    result["cls"] = row
            if "loc" in outputs:
                found = select_boxes(outputs["loc"], sizes, self.loc.num_select, self.box_columns(name))
                for result, instances in zip(mine, found, strict=True):
                    result["instances"] = instances
            if "seg" in outputs:
                maps = self._upsample(outputs["seg"], batch.tensors["image"].shape[-2:]).float().sigmoid()
                for inside, size, result, each in zip(batch.sizes, sizes, mine, maps, strict=True):
                    result |= original_masks(each, inside, size)
        return results

    def run_heads(
        self, features: dict[str, Tensor], padding: Tensor | None, wanted: Mapping[str, Iterable[str]]
    ) -> dict[str, dict[str, Any]]:
        """Outputs of the heads and decoders of several datasets for backbone features; shared components run once.

        Returns:
            {dataset: {"cls": (B, C) float32 probabilities, "loc": DecoderOutput, "seg": (B, C, H, W) logits at the
            segmentation decoder's stride}}, for the requested tasks.
        """
        tasks = {task: [name for name, chosen in wanted.items() if task in chosen] for task in TASK_COMPONENTS}
        found: dict[str, dict[str, Any]] = {name: {} for name in wanted}
        pooled = self.backbone.pooled(features) if tasks["cls"] else None
        for name in tasks["cls"]:
            logits = self.cls_heads[name](pooled).float()
            found[name]["cls"] = logits.softmax(-1) if self.specs[name].cls_kind == "softmax" else logits.sigmoid()
        guided = [name for name in tasks["seg"] if self._is_guided(name)]
        memory = self._encode(features, padding) if tasks["loc"] or guided else None
        boxes = {name: self.loc_decoders[name](memory) for name in dict.fromkeys((*tasks["loc"], *guided))}
        for name in tasks["loc"]:
            found[name]["loc"] = boxes[name]
        plain = self.fuse(features, None) if set(tasks["seg"]) - set(guided) else None
        for name in tasks["seg"]:
            fused = plain
            if name in guided:
                ratios = cast(Memory, memory).valid_ratios
                regions = find_regions(boxes[name], self.box_columns(name), ratios, self.regions)
                fused = self.fuse(features, regions)
            found[name]["seg"] = self.seg_heads[name](fused)
        return found

    def box_columns(self, dataset: str) -> range:
        """The columns of a localization decoder's logits that are the dataset's classes, in their order."""
        return range(self.loc.first_class, self.loc.first_class + len(self.specs[dataset].loc_classes))

    @torch.no_grad()
    def embed(self, batch: Samples) -> Tensor:
        """Pooled backbone features, (B, C), the input of the classification heads."""
        return self.backbone.pooled(self.features(self._on_device(batch), "image")[0])

    def modules_of(self, dataset: str, task: str) -> dict[str, list[nn.Module]]:
        """Component -> its modules that a training step of one dataset's task can train."""
        heads = HEAD_COMPONENTS[task]
        modules: dict[str, list[nn.Module]] = {}
        for component in TASK_COMPONENTS[task]:
            if component == "backbone":
                modules[component] = self.backbone.modules_for(task)
            else:
                part = getattr(self, component)
                modules[component] = [part[dataset] if component == heads else part]
        return modules

    def shared_components(self, phase: Phase) -> list[str]:
        """Shared components with a consistency loss in a phase: the trainable ones; none if `consistency` is 0."""
        if self.consistency == 0:
            return []
        return [c for c in SHARED_COMPONENTS if c in phase.trainable]

    def _on_device(self, batch: Samples) -> Batch:
        return (batch if isinstance(batch, Batch) else Batch.collate(batch)).to(self.device)

    def features(self, batch: Batch, view: str) -> tuple[dict[str, Tensor], Tensor | None]:
        """Backbone features of a batch on the device, and its padding (B, H, W); see `SharedPass` for `view`."""
        images, padding = batch.tensors.get(view, batch.tensors["image"]), batch.tensors.get("padding")
        images = normalize_images(images, self.pixel_mean, self.pixel_std)
        if padding is not None:
            images = images.masked_fill(padding[:, None], 0)
        return self.backbone(images), padding

    def _encode(self, features: dict[str, Tensor], padding: Tensor | None) -> Memory:
        return cast(LocEncoder, self.loc_encoder)(self.backbone.levels(features), padding)

    def _is_guided(self, dataset: str) -> bool:
        return self.regions.weight > 0 and dataset in self.loc_decoders

    @torch.no_grad()
    def find_own_regions(self, dataset: str, features: dict[str, Tensor], padding: Tensor | None) -> Regions | None:
        """Regions around the boxes predicted by the dataset's own decoder, without grad; None without guidance.

        The localization encoder and decoder, which a segmentation step does not train, run here.
        """
        if not self._is_guided(dataset):
            return None
        memory = self._encode(features, padding)
        out = self.loc_decoders[dataset](memory)
        return find_regions(out, self.box_columns(dataset), memory.valid_ratios, self.regions)

    def fuse(self, features: dict[str, Tensor], regions: Regions | None) -> Tensor:
        """Output of the segmentation decoder for backbone features, guided by regions if given."""
        guided = features if regions is None else guide_features(features, regions, self.regions.weight)
        return cast(SegDecoder, self.seg_decoder)(list(guided.values()))

    @staticmethod
    def _upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
        """In at least float32: each position's gradient is a sum over many pixels, accumulated in the input's dtype."""
        return F.interpolate(at_least_float32(logits), size=tuple(size), mode="bilinear", align_corners=False)
