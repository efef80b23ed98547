"""Checkpoints of the authors' public code: Foundation X (one decoder per dataset) and Foundation X+ (one for all).

In these checkpoints several names refer to one tensor (the heads of all layers, the smoothing convolution); logits and
label embeddings are indexed by category id, starting at 1; decoders share query and label embeddings, which are
per dataset here; a `class_embed`, four norms and three segmentation heads are unused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fx_d2.modeling.convert.renamed import Renamed, rename_all
from fx_d2.modeling.convert.trunk import swin_name

CLS_HEADS = (
    "tbx11k",
    "node21",
    "candid_ptx",
    "rsna_pneumonia",
    "chestx_det",
    "siim_acr",
    "chexpert",
    "nih_chestxray14",
    "vindr_cxr",
    "nih_shenzhen",
    "mimic_cxr",
)
"""Datasets in the order of the classification heads; the first six also in the order of the decoders."""

LOC_DECODERS = CLS_HEADS[:6]

SEG_HEADS = {2: "candid_ptx", 4: "chestx_det", 5: "siim_acr"}
"""The segmentation heads that are used."""

_FFN = {"linear1": "ffn.linear1", "linear2": "ffn.linear2"}
_ENCODER_LAYER = _FFN | {"self_attn": "attention", "norm1": "norm", "norm2": "ffn.norm"}
_DECODER_LAYER = _FFN | {
    "cross_attn": "cross_attention",
    "norm1": "cross_norm",
    "self_attn": "self_attention",
    "norm2": "self_norm",
    "norm3": "ffn.norm",
}
_PER_DATASET = {
    "enc_output": "proposal_proj",
    "enc_output_norm": "proposal_norm",
    "enc_outputMem_LinearProjection": "memory_proj",
    "enc_out_class_embed": "proposal_class",
}

Names = Iterable[str] | None
Rule = tuple[str, Callable[[re.Match[str]], Names]]


def _decoders(name: str) -> list[str]:
    return [f"loc_decoders.{dataset}.{name}" for dataset in LOC_DECODERS]


def _decoder(index: str, name: str) -> list[str]:
    return [f"loc_decoders.{LOC_DECODERS[int(index)]}.{name}"]


def _mlp(head: str, layer: str, name: str) -> str:
    """torchvision's MLP has an activation and a dropout after each linear layer except the last."""
    return f"{head}.{3 * int(layer)}.{name}"


def _swin(m: re.Match[str]) -> Names:
    return swin_name(m[1], merging_last=True)


def _segmentation_head(m: re.Match[str]) -> Names:
    return [f"seg_heads.{SEG_HEADS[int(m[1])]}.{m[2]}"] if int(m[1]) in SEG_HEADS else []


_SHARED: tuple[Rule, ...] = (
    (r"backbone\.0\.((?:patch_embed|layers|norm)\..+)", _swin),
    (r"backbone\.0\.Locnorm([1-3])\.(.+)", lambda m: [f"backbone.loc_norms.{int(m[1]) - 1}.{m[2]}"]),
    (r"backbone\.0\.classification_heads\.(\d+)\.(.+)", lambda m: [f"cls_heads.{CLS_HEADS[int(m[1])]}.{m[2]}"]),
    (r"backbone\.0\.segmentation_heads\.([0-5])\.(.+)", _segmentation_head),
    (r"backbone\.0\.segmentation_PPN\.stages\.(\d)\.1\.(.+)", lambda m: [f"seg_decoder.pooling.stages.{m[1]}.{m[2]}"]),
    (
        r"backbone\.0\.segmentation_PPN\.stages\.(\d)\.2\.(.+)",
        lambda m: [f"seg_decoder.pooling.stages.{m[1]}.norm.{m[2]}"],
    ),
    (r"backbone\.0\.segmentation_PPN\.bottleneck\.0\.(.+)", lambda m: [f"seg_decoder.pooling.bottleneck.{m[1]}"]),
    (r"backbone\.0\.segmentation_PPN\.bottleneck\.1\.(.+)", lambda m: [f"seg_decoder.pooling.bottleneck.norm.{m[1]}"]),
    (r"backbone\.0\.segmentation_FPN\.conv1x1\.(.+)", lambda m: [f"seg_decoder.laterals.{m[1]}"]),
    (r"backbone\.0\.segmentation_FPN\.smooth_conv\.(.+)", lambda m: [f"seg_decoder.smooth.{m[1]}"]),
    (r"backbone\.0\.segmentation_FPN\.conv_fusion\.0\.(.+)", lambda m: [f"seg_decoder.fuse.{m[1]}"]),
    (r"backbone\.0\.segmentation_FPN\.conv_fusion\.1\.(.+)", lambda m: [f"seg_decoder.fuse.norm.{m[1]}"]),
    (r"backbone\.0\.(?:head|Segnorm\d)\..+", lambda m: []),
    (r"input_proj\.(.+)", lambda m: [f"loc_encoder.input_proj.{m[1]}"]),
    (r"transformer\.level_embed", lambda m: ["loc_encoder.level_embed"]),
    (
        r"transformer\.encoder\.layers\.(\d+)\.(\w+)\.(.+)",
        lambda m: [f"loc_encoder.layers.{m[1]}.{_ENCODER_LAYER[m[2]]}.{m[3]}"],
    ),
    (r"label_enc\.weight", lambda m: _decoders("label_embed.weight")),
    (
        r"transformer\.enc_out_bbox_embed\.([0-5])\.layers\.(\d)\.(.+)",
        lambda m: _decoder(m[1], _mlp("proposal_box", m[2], m[3])),
    ),
    (r"transformer\.enc_out_class_embed\.([0-5])\.(.+)", lambda m: _decoder(m[1], f"proposal_class.{m[2]}")),
)

_SEPARATE: tuple[Rule, ...] = (
    (
        r"transformer\.decoder\.([0-5])\.layers\.(\d+)\.(\w+)\.(.+)",
        lambda m: _decoder(m[1], f"layers.{m[2]}.{_DECODER_LAYER[m[3]]}.{m[4]}"),
    ),
    (r"transformer\.decoder\.([0-5])\.norm\.(.+)", lambda m: _decoder(m[1], f"norm.{m[2]}")),
    (
        r"transformer\.decoder\.([0-5])\.ref_point_head\.layers\.(\d)\.(.+)",
        lambda m: _decoder(m[1], _mlp("position_head", m[2], m[3])),
    ),
    (
        r"transformer\.decoder\.([0-5])\.bbox_embed\.\d+\.layers\.(\d)\.(.+)",
        lambda m: _decoder(m[1], _mlp("refine_head", m[2], m[3])),
    ),
    (r"bbox_embed\.([0-5])\.\d+\.layers\.(\d)\.(.+)", lambda m: _decoder(m[1], _mlp("refine_head", m[2], m[3]))),
    (r"bbox_embed_\.([0-5])\.\d+\.layers\.(\d)\.(.+)", lambda m: _decoder(m[1], _mlp("box_head", m[2], m[3]))),
    (r"class_embed_\.([0-5])\.\d+\.(.+)", lambda m: _decoder(m[1], f"class_head.{m[2]}")),
    (r"(?:transformer\.decoder\.[0-5]\.)?class_embed\..+", lambda m: []),
    (r"transformer\.tgt_embed\.weight", lambda m: _decoders("query_embed.weight")),
    (
        r"transformer\.(enc_output|enc_output_norm|enc_outputMem_LinearProjection)\.([0-5])\.(.+)",
        lambda m: _decoder(m[2], f"{_PER_DATASET[m[1]]}.{m[3]}"),
    ),
)

_CONSOLIDATED: tuple[Rule, ...] = (
    (
        r"transformer\.decoder\.layers\.(\d+)\.(\w+)\.(.+)",
        lambda m: _decoders(f"layers.{m[1]}.{_DECODER_LAYER[m[2]]}.{m[3]}"),
    ),
    (r"transformer\.decoder\.norm\.(.+)", lambda m: _decoders(f"norm.{m[1]}")),
    (
        r"transformer\.decoder\.ref_point_head\.layers\.(\d)\.(.+)",
        lambda m: _decoders(_mlp("position_head", m[1], m[2])),
    ),
    (
        r"(?:transformer\.decoder\.)?bbox_embed\.([0-5])\.\d+\.layers\.(\d)\.(.+)",
        lambda m: [name for head in ("box_head", "refine_head") for name in _decoder(m[1], _mlp(head, m[2], m[3]))],
    ),
    (
        r"(?:transformer\.decoder\.)?class_embed\.([0-5])\.\d+\.(.+)",
        lambda m: _decoder(m[1], f"class_head.{m[2]}"),
    ),
    (r"(?:bbox_embed_|class_embed_)\..+", lambda m: []),
    (r"transformer\.tgt_embed\.([0-5])\.weight", lambda m: _decoder(m[1], "query_embed.weight")),
    (r"transformer\.enc_output(?:_norm)?\..+", lambda m: []),
)


def _renamer(rules: tuple[Rule, ...], target: Mapping[str, Tensor]) -> Callable[[str], Names]:
    """One renaming function from all rules; it drops heads of datasets that the model does not have."""
    compiled = [(re.compile(pattern), names) for pattern, names in rules]
    places = {_place(name) for name in target}

    def rename(key: str) -> Names:
        key = key.removeprefix("module.")
        try:
            found = ((names, match) for pattern, names in compiled if (match := pattern.fullmatch(key)))
            ours = next((names(match) for names, match in found), None)
        except (KeyError, IndexError):  # a part of a layer, or a dataset, that the public code does not have
            return None
        return None if ours is None else [name for name in ours if _place(name) in places]

    return rename


def _share_stack(result: Renamed, target: Mapping[str, Tensor]) -> None:
    """If the model shares one decoder stack as Foundation X+ does, move it to the encoder, which holds it here."""
    shared = "loc_encoder.decoder_stack."
    for key in [key for key in result.state if key not in target]:
        part, _, rest = key.partition(".")
        name = shared + rest.partition(".")[2]
        if part == "loc_decoders" and name in target:
            result.state[name] = result.state.pop(key)


def _place(name: str) -> str:
    """The head or decoder a name belongs to, "" for shared components."""
    part, dataset, *_ = name.split(".")
    return f"{part}.{dataset}" if part in ("cls_heads", "loc_decoders", "seg_heads") else ""


def rename_official(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Renamed | None:
    """Foundation X or Foundation X+, recognised by parameter names; None if it is neither."""
    keys = {key.removeprefix("module.") for key in source}
    if not any(key.startswith("backbone.0.") for key in keys):
        return None
    if any(key.startswith("transformer.decoder.layers.") for key in keys):
        result = rename_all("Foundation X+", source, _renamer(_SHARED + _CONSOLIDATED, target))
        _share_stack(result, target)
        _neutral_projection(result, target)
    else:
        result = rename_all("Foundation X", source, _renamer(_SHARED + _SEPARATE, target))
    _tie_box_heads(result, target)
    _own_classes(result, target)
    return result


def _neutral_projection(result: Renamed, target: Mapping[str, Tensor]) -> None:
    """Foundation X+ does not project the memory: our projection becomes the identity.

    It also computes proposals without a projection and a norm. Our LayerNorm cannot be an identity, so proposals, and
    with them the order of the queries, differ from the original's. `proposal_proj` and `proposal_norm` stay missing.
    """
    for dataset in LOC_DECODERS:
        name = f"loc_decoders.{dataset}.memory_proj"
        if f"{name}.weight" in target:
            size = len(target[f"{name}.weight"])
            result.state |= {f"{name}.weight": torch.eye(size), f"{name}.bias": torch.zeros(size)}
    result.notes.append(
        "memory projections are the identity; proposal_proj and proposal_norm have no counterpart, so proposals "
        "differ from the original's"
    )
    if not any(name.startswith("loc_encoder.decoder_stack.") for name in target):
        result.notes.append(
            "the shared decoder was copied to every dataset (MODEL.LOC.SHARED_DECODER True keeps it shared)"
        )


def _tie_box_heads(result: Renamed, target: Mapping[str, Tensor]) -> None:
    """A model with tied box heads gets the refining one: the original's optimizer did not include the other."""
    tied = 0
    for dataset in LOC_DECODERS:
        refine, box = (f"loc_decoders.{dataset}.{head}_head." for head in ("refine", "box"))
        if f"{box}0.weight" not in target or f"{refine}0.weight" in target:
            continue
        for key in [key for key in result.state if key.startswith(refine)]:
            result.state[box + key.removeprefix(refine)] = result.state.pop(key)
            tied = 1
    if tied and result.layout == "Foundation X":
        result.notes.append(
            "box heads are tied: the refining head's weights were used for both, so boxes differ from the original's "
            "(MODEL.LOC.TIE_BOX_HEADS False keeps both heads)"
        )


def _own_classes(result: Renamed, target: Mapping[str, Tensor]) -> None:
    """If the model has only the dataset's classes, take their rows: rows are category ids, so class i is row i + 1."""
    cut = re.compile(r"loc_decoders\.\w+\.(?:class_head|proposal_class|label_embed)\.(?:weight|bias)")
    changed = 0
    for key, tensor in result.state.items():
        if cut.fullmatch(key) and key in target and len(target[key]) < len(tensor):
            result.state[key] = tensor[1 : 1 + len(target[key])].clone()
            changed += 1
    if changed:
        result.notes.append("class heads and label embeddings were cut to the datasets' own classes (rows from 1)")
