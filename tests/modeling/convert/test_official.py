"""The authors' layouts on the meta device with their real names; the numbers are compared in tests/parity."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fx_d2.data import register_rows
from fx_d2.engine import build_cfg
from fx_d2.engine.convert import build_shapes
from fx_d2.modeling.convert.official import LOC_DECODERS, rename_official
from fx_d2.modeling.convert.renamed import Renamed

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "projects" / "FoundationX" / "configs"
LAYOUT: dict[str, list[int]] = json.loads((ROOT / "tests/parity/reference/official_state_dict.json").read_text())

Target = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="module")
def target() -> Target:
    """Function (config, *opts) -> names and shapes of its model."""

    def build(config: str, *opts: str) -> dict[str, Tensor]:
        cfg = build_cfg(str(CONFIGS / config), list(opts))
        register_rows(cfg)
        return build_shapes(cfg).state_dict()

    return build


def source() -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in LAYOUT.items()}


def fits(result: Renamed, target: dict[str, Tensor]) -> None:
    assert {k: v.shape for k, v in result.state.items()} == {k: v.shape for k, v in target.items()}


def test_every_name_has_its_place(target: Target) -> None:
    wanted = target("reference.yaml")
    result = rename_official(source(), wanted)
    assert result is not None and result.layout == "Foundation X"
    fits(result, wanted)
    assert result.unknown == result.notes == []
    places = ("head.", "Segnorm", "segmentation_heads.", "class_embed.", "relative_position_index")
    assert all(any(place in key for place in places) for key in result.unused)
    assert len(result.unused) == 24 + 2 + 8 + 6 + 144  # index tables, head, norms, heads 0, 1, 3, class_embed


def test_a_prefix_of_parallel_training_is_taken_off(target: Target) -> None:
    wanted = target("reference.yaml")
    result = rename_official({f"module.{key}": value for key, value in source().items()}, wanted)
    assert result is not None
    fits(result, wanted)


def test_a_model_of_our_own_defaults(target: Target) -> None:
    """One box head, the datasets' own classes: the refining head, and the rows of category ids from 1."""
    wanted = target("base.yaml")
    state = source()
    for key in state:
        if match := re.fullmatch(
            r"(?:transformer\.decoder\.(\d)\.bbox_embed|bbox_embed\.(\d))\.\d\.layers\.2\.bias", key
        ):
            state[key] = torch.full((4,), 1.0 + int(match[1] or match[2]))
        elif re.fullmatch(r"class_embed_\.[14]\.\d\.bias|transformer\.enc_out_class_embed\.4\.bias", key):
            state[key] = torch.arange(14.0)
    state["label_enc.weight"] = torch.arange(16.0)[:, None].expand(16, 256)
    result = rename_official(state, wanted)
    assert result is not None and any("tied" in note for note in result.notes)
    assert any("cut to the datasets' own classes" in note for note in result.notes)
    fits(result, wanted)
    for index, dataset in enumerate(LOC_DECODERS):
        assert (result.state[f"loc_decoders.{dataset}.box_head.6.bias"] == 1 + index).all()
    assert result.state["loc_decoders.chestx_det.class_head.bias"].tolist() == list(range(1, 14))
    assert result.state["loc_decoders.chestx_det.proposal_class.bias"].tolist() == list(range(1, 14))
    assert result.state["loc_decoders.node21.class_head.bias"].tolist() == [1]
    assert result.state["loc_decoders.chestx_det.label_embed.weight"][:, 0].tolist() == list(range(1, 14))


def test_some_datasets_only(target: Target) -> None:
    wanted = target("reference.yaml", "DATASETS.TRAIN", "['siim_acr_train']")
    result = rename_official(source(), wanted)
    assert result is not None
    fits(result, wanted)
    assert "backbone.0.classification_heads.6.weight" in result.unused and result.unknown == []


def test_aliases_that_disagree_are_named(target: Target) -> None:
    state = {key: torch.zeros(1) for key in LAYOUT}
    state["bbox_embed.3.5.layers.0.bias"] = torch.ones(1)
    state["class_embed_.2.1.weight"] = torch.ones(1)
    result = rename_official(state, target("reference.yaml"))
    assert result is not None
    (note,) = result.notes
    assert "different values" in note and note.endswith(" and 1 more")


def test_strangers_are_unknown(target: Target) -> None:
    strangers = (
        "backbone.0.classification_heads.11.weight",
        "transformer.decoder.6.norm.weight",
        "transformer.decoder.0.layers.0.extra.weight",
        "transformer.encoder.layers.0.norm9.weight",
        "something.else",
    )
    result = rename_official(source() | {key: torch.zeros(1) for key in strangers}, target("reference.yaml"))
    assert result is not None and set(result.unknown) == set(strangers)
    assert rename_official({"something.else": torch.zeros(1)}, {}) is None


def consolidated() -> dict[str, Tensor]:
    """Foundation X+ as described: one decoder, box heads tied, query embeddings per dataset, no memory projection."""
    state = {}
    for key, value in source().items():
        if key.startswith("transformer.decoder."):
            _, _, index, rest = key.split(".", 3)
            if index == "0" and not rest.startswith(("bbox_embed", "class_embed")):
                state[f"transformer.decoder.{rest}"] = value
        elif key.startswith(("bbox_embed.", "class_embed.")):
            state[key] = state[f"transformer.decoder.{key}"] = value
        elif key == "transformer.tgt_embed.weight":
            state |= {f"transformer.tgt_embed.{i}.weight": value for i in range(6)}
        elif key.startswith(("transformer.enc_output.0", "transformer.enc_output_norm.0")):
            state[key.replace(".0.", ".")] = value
        elif not key.startswith(
            ("transformer.enc_output.", "transformer.enc_output_norm.", "transformer.enc_outputMem")
        ):
            state[key] = value
    return state


def test_the_consolidated_decoder_goes_to_every_dataset(target: Target) -> None:
    wanted = target("reference.yaml")
    result = rename_official(consolidated(), wanted)
    assert result is not None and result.layout == "Foundation X+" and result.unknown == []
    missing = {key for key in wanted if key not in result.state}
    assert missing == {
        f"loc_decoders.{dataset}.proposal_{part}.{kind}"
        for dataset in LOC_DECODERS
        for part in ("proj", "norm")
        for kind in ("weight", "bias")
    }
    assert all(result.state[key].shape == wanted[key].shape for key in result.state)
    first, second = (result.state[f"loc_decoders.{d}.layers.0.ffn.linear1.weight"] for d in LOC_DECODERS[:2])
    assert first is second
    assert torch.equal(result.state["loc_decoders.node21.memory_proj.weight"], torch.eye(256))
    assert any("proposal_norm have no counterpart" in note for note in result.notes)
    assert any("copied to every dataset" in note for note in result.notes)
    tied = target("reference.yaml", "MODEL.LOC.TIE_BOX_HEADS", "True")
    result = rename_official(consolidated(), tied)
    assert result is not None and not any(".refine_head." in key for key in result.state)
    assert set(result.state) <= set(tied)


def test_the_consolidated_decoder_stays_one_where_the_model_has_one(target: Target) -> None:
    wanted = target("pretrain/foundation_x_plus.yaml")
    source = consolidated()
    result = rename_official(source, wanted)
    assert result is not None and result.unknown == [] and set(result.state) <= set(wanted)
    stack = {key for key in wanted if key.startswith("loc_encoder.decoder_stack.")}
    assert stack and stack <= set(result.state)
    ours = result.state["loc_encoder.decoder_stack.layers.3.cross_attention.value_proj.weight"]
    assert ours is source["transformer.decoder.layers.3.cross_attn.value_proj.weight"]
    assert not any("copied to every dataset" in note for note in result.notes)
