"""Backbone checkpoints: Swin as named by Microsoft, timm and Detectron2, and any timm model.

Ark, POPAR and ImageNet checkpoints hold a Swin in one of these forms under a prefix, plus heads that are not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from fx_d2.modeling.convert.renamed import Renamed, rename_all

STEM = "patch_embed.proj.weight"
"""A name that every Swin has; it reveals the prefix."""

_BLOCKS = re.compile(r"layers[._](\d+)\.(blocks\..+)")
_MERGING = re.compile(r"layers[._](\d+)\.(downsample\..+)")
_CLS_NORM = re.compile(r"norm\.(weight|bias)")
_STAGE_NORM = re.compile(r"norm([1-3])\.(weight|bias)")
_BUFFERS = re.compile(r".*(relative_position_index|attn_mask)")
_INDEXED = re.compile(r"^(\w+)\.(\d+)\.")


def swin_name(key: str, merging_last: bool) -> tuple[str, ...] | None:
    """Our name of a Swin's tensor.

    Args:
        key: name without the backbone's prefix.
        merging_last: `layers.i.downsample` ends stage i (Microsoft, Detectron2, timm up to 0.6); False: it begins
            stage i (timm from 0.9).

    Returns:
        One name; empty for index buffers, which every model computes itself; None for any other name.
    """
    if _BUFFERS.fullmatch(key):
        return ()
    if match := _BLOCKS.fullmatch(key):
        return (f"backbone.trunk.layers_{match[1]}.{match[2]}",)
    if match := _MERGING.fullmatch(key):
        return (f"backbone.trunk.layers_{int(match[1]) + merging_last}.{match[2]}",)
    if match := _CLS_NORM.fullmatch(key):
        return (f"backbone.cls_norm.{match[1]}",)
    if match := _STAGE_NORM.fullmatch(key):
        return (f"backbone.loc_norms.{int(match[1]) - 1}.{match[2]}",)
    return (f"backbone.trunk.{key}",) if key.startswith("patch_embed.") else None


def rename_swin(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Renamed | None:
    """A Swin under any prefix, such as "module.", "module.swin_model." or "backbone.bottom_up.".

    The final norm becomes the classification norm; Detectron2's norms of stages 1 to 3 become the localization norms.
    Everything outside the backbone (heads, projectors, decoders) is unknown. None: source or target is not a Swin.
    """
    stems = sorted((key for key in source if key.endswith(STEM)), key=len)
    if not stems or f"backbone.trunk.{STEM}" not in target:
        return None
    prefix = stems[0].removesuffix(STEM)
    merging_last = any(re.match(r"layers[._]0\.downsample\.", key.removeprefix(prefix)) for key in source)

    def rename(key: str) -> tuple[str, ...] | None:
        return swin_name(key.removeprefix(prefix), merging_last) if key.startswith(prefix) else None

    result = rename_all("Swin", source, rename)
    result.notes += [f"a second backbone, {stem.removesuffix(STEM)!r}, was ignored" for stem in stems[1:]]
    return result


def rename_timm(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Renamed | None:
    """Any timm model; `features_only` models have "stages_0." for "stages.0.". None: no name matches."""

    def rename(key: str) -> tuple[str, ...] | None:
        plain = key.removeprefix("module.")
        names = (f"backbone.trunk.{form}" for form in (plain, _INDEXED.sub(r"\1_\2.", plain)))
        found = next((name for name in names if name in target), None)
        return None if found is None else (found,)

    result = rename_all("timm", source, rename)
    return result if result.state else None
