"""The shared backbone: any timm model with multi-scale features, as a Detectron2 Backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import Format
from torch import Tensor, nn

from fx_d2.structures import FXError


class TimmBackbone(Backbone):
    """A timm model, and the norms applied to its features for classification and localization.

    Args:
        name: timm model name, such as "swin_base_patch4_window7_224".
        kwargs: further arguments of `timm.create_model`.
        size: (height, width) of the images, for models that fix it at construction.
        in_chans: input channels, 1 or 3; a grey image is repeated to 3.
        drop_path: stochastic depth rate of the last block.
        grad_checkpointing: recompute activations in the backward pass.
        fused_attention: use torch's fused attention kernels.
        frozen_stages: the stem and this many stages are frozen in every phase; 0 = none.
        loc_stages: stages (0-based) used for localization.

    Raises:
        FXError: timm does not have the model or cannot build it, `in_chans` is neither 1 nor 3, an image side is not a
            multiple of the patch size, or the model does not have the requested stages.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        kwargs: dict[str, Any],
        size: Sequence[int],
        in_chans: int,
        drop_path: float,
        grad_checkpointing: bool,
        fused_attention: bool,
        frozen_stages: int,
        loc_stages: Sequence[int],
    ) -> None:
        super().__init__()
        if in_chans not in (1, 3):
            raise FXError(f"MODEL.TIMM.IN_CHANS is {in_chans}: choose 1, or 3 (grey images are repeated to 3 channels)")
        trunk = _create_trunk(name, size, {"in_chans": in_chans, "drop_path_rate": drop_path} | kwargs)
        if grad_checkpointing:
            _switch_checkpointing_on(trunk, name)
        attentions = [module for module in trunk.modules() if hasattr(module, "fused_attn")]
        for module in attentions:
            module.fused_attn = fused_attention
        self.fused_attention = fused_attention
        self._biased = [module for module in attentions if hasattr(module, "relative_position_bias_table")]
        self.name, self.trunk, self.in_chans = name, trunk, in_chans
        self.channels: list[int] = trunk.feature_info.channels()
        self.strides: list[int] = trunk.feature_info.reduction()
        # Models with fixed windows or position embeddings accept one size only; convolutional models accept any.
        self._only_size = tuple(size) if any(getattr(m, "strict_img_size", False) for m in trunk.modules()) else None
        self._check_size(size)
        self.loc_stages = tuple(loc_stages)
        last = len(self.channels) - 1
        if max(self.loc_stages, default=-1) != last or min(self.loc_stages) < 0:
            # Without the last stage, the end of the backbone would get no gradient in localization.
            raise FXError(
                f"MODEL.LOC.STAGES {list(loc_stages)}: {name} has stages 0 to {last}; {last} must be included"
            )
        self._channels_last = getattr(trunk, "output_fmt", Format.NCHW) == Format.NHWC
        self.cls_norm = nn.LayerNorm(self.channels[-1])
        self.loc_norms = nn.ModuleList(nn.LayerNorm(self.channels[i]) for i in self.loc_stages)
        self._learning = _after_stage(trunk, frozen_stages, name) if frozen_stages else [trunk]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from MODEL.TIMM, MODEL.LOC.STAGES and INPUT.SIZE."""
        node = cfg.MODEL.TIMM
        return {
            "name": node.NAME,
            "kwargs": {key: value for key, value in node.KWARGS.items()},
            "size": cfg.INPUT.SIZE,
            "in_chans": node.IN_CHANS,
            "drop_path": node.DROP_PATH,
            "grad_checkpointing": node.GRAD_CHECKPOINTING,
            "fused_attention": node.FUSED_ATTENTION,
            "frozen_stages": node.FROZEN_STAGES,
            "loc_stages": cfg.MODEL.LOC.STAGES,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1, H, W) normalised grey images -> {"stage0": (B, C0, H/s0, W/s0), ...}, raw stage outputs.

        H and W must be multiples of the finest stride; coarser stages round their sizes up.

        Raises:
            FXError: H or W is not such a multiple, or differs from the size that the model fixed at construction.
        """
        self._check_size(images.shape[-2:])
        if self.in_chans != images.shape[1]:
            images = images.expand(-1, self.in_chans, -1, -1)
        for module in self._biased:
            # On CPUs torch has no fused kernel for a trainable bias, and its fallback is slower than timm's own code.
            learns = torch.is_grad_enabled() and module.relative_position_bias_table.requires_grad
            module.fused_attn = self.fused_attention and not (learns and images.device.type == "cpu")
        stages = self.trunk(images)
        if self._channels_last:
            stages = [x.permute(0, 3, 1, 2) for x in stages]
        return {f"stage{i}": x for i, x in enumerate(stages)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each stage."""
        pairs = zip(self.channels, self.strides, strict=True)
        return {f"stage{i}": ShapeSpec(channels=c, stride=s) for i, (c, s) in enumerate(pairs)}

    def pooled(self, features: dict[str, Tensor]) -> Tensor:
        """Image features for classification: the last stage, normalised, then averaged over positions, (B, C)."""
        tokens = features[f"stage{len(self.channels) - 1}"].flatten(2).transpose(1, 2)
        return self.cls_norm(tokens).mean(1)

    def levels(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The stages used for localization, each with its own LayerNorm over channels: (B, C_i, H_i, W_i)."""
        return [
            norm(features[f"stage{i}"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for i, norm in zip(self.loc_stages, self.loc_norms, strict=True)
        ]

    def modules_for(self, task: str) -> list[nn.Module]:
        """The modules a task runs through that may be trainable.

        Excludes `frozen_stages` and the other tasks' norms, which get no gradient from this task.
        """
        norms: dict[str, list[nn.Module]] = {"cls": [self.cls_norm], "loc": [self.loc_norms], "seg": []}
        return [*self._learning, *norms[task]]

    def _check_size(self, size: Sequence[int]) -> None:
        """FXError unless patches tile the image (timm may crop the rest) and the model accepts its size."""
        patch = self.strides[0]
        if any(side % patch for side in size):
            near = [max(round(side / patch), 1) * patch for side in size]
            raise FXError(
                f"images of {size[0]} x {size[1]} pixels: {self.name} needs sides that are multiples of its patch size "
                f"{patch}; set INPUT.SIZE, for example to {near}"
            )
        if self._only_size not in (None, tuple(size)):
            raise FXError(
                f"images of {size[0]} x {size[1]} pixels: {self.name} was built for {list(self._only_size or ())}; "
                "resize them, or build it with another INPUT.SIZE"
            )


def _create_trunk(name: str, size: Sequence[int], kwargs: dict[str, Any]) -> Any:
    if not timm.is_model(name):
        close = timm.list_models(f"{name.split('_')[0]}*") or timm.list_models("swin*")
        raise FXError(f"MODEL.TIMM.NAME {name!r} is not a timm model; for example {close[:8]}")
    # Convolutional models have no img_size, and some models no drop_path_rate, where omitting 0 changes nothing.
    optional = {"img_size"} | ({"drop_path_rate"} if kwargs["drop_path_rate"] == 0 else set())
    arguments = {"img_size": tuple(size)} | kwargs
    while True:
        try:
            return timm.create_model(name, features_only=True, **arguments)
        except Exception as error:  # wrong arguments raise errors of any type, from deep inside timm
            refused = next((key for key in optional if isinstance(error, TypeError) and f"'{key}'" in str(error)), None)
            if refused in arguments:
                del arguments[refused]
                continue
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise FXError(f"MODEL.TIMM: timm cannot build {name} as a backbone with {kwargs}: {what}") from error


def _switch_checkpointing_on(trunk: Any, name: str) -> None:
    try:
        trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise FXError(f"MODEL.TIMM.GRAD_CHECKPOINTING: {name} does not support it; set it to False") from error


def _after_stage(trunk: nn.Module, frozen: int, name: str) -> list[nn.Module]:
    """The largest modules that contain nothing of the stem or the first `frozen` stages.

    Relies on timm registering modules in the order in which they run.
    """
    stages = trunk.feature_info.module_name()  # type: ignore[operator,union-attr]
    if not 0 < frozen < len(stages):
        raise FXError(
            f"MODEL.TIMM.FROZEN_STAGES is {frozen}: {name} has {len(stages)} stages, and the last one must be "
            "trainable; to freeze the whole backbone leave `backbone` out of the rows of SCHEDULE.STRATEGY"
        )
    # timm reports stage names of the original network; features_only wrappers prefix "model." or replace the dots.
    last, modules = stages[frozen - 1], dict(trunk.named_modules())
    path = next((p for p in (last, last.replace(".", "_"), f"model.{last}") if p in modules), None)
    if path is None:
        raise FXError(f"MODEL.TIMM.FROZEN_STAGES: module {last!r} was not found in {name}; set it to 0")
    order = list(modules)
    end = max(i for i, key in enumerate(order) if key == path or key.startswith(f"{path}."))
    late = set(order[end + 1 :])
    # Registered after the last frozen module, and not inside another such module.
    return [modules[key] for key in order[end + 1 :] if key.rpartition(".")[0] not in late]


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TimmBackbone:
    """Detectron2's builder: the backbone of MODEL.TIMM. `input_shape` is ignored, images are grey."""
    del input_shape
    return TimmBackbone(cfg)


def normalize_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 or float grey values in [0, 255] -> (images - mean) / std, in the dtype of `mean`."""
    return (images.to(mean.dtype) - mean) / std
