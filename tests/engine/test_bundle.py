"""Checkpoints as models for use: read, changed, written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.engine.bundle import Bundle, read_bundle, with_heads, write_inference, write_training_checkpoint
from fx_d2.engine.checkpoint import FXCheckpointer, class_lists, load_models
from fx_d2.layers.deformable_attention import DeformableAttention
from fx_d2.modeling import EMATeacher
from fx_d2.structures import DatasetSpec, FXError

MakeCfg = Callable[..., CfgNode]
GAMMA = DatasetSpec(name="gamma", title="Gamma", cls_classes=("x",), loc_classes=("x", "y"))


@pytest.fixture
def checkpoint(make_cfg: MakeCfg, tmp_path: Path) -> Path:
    """As a run writes it, with a teacher that differs; the config asks for downloaded weights."""
    return save(make_cfg(), tmp_path)


def save(cfg: CfgNode, folder: Path) -> Path:
    torch.manual_seed(1)
    model, teacher = build_model(cfg), EMATeacher(build_model(cfg))
    dump = cfg.dump().replace("      embed_dim: 16\n", "      embed_dim: 16\n      pretrained: true\n")
    assert "pretrained" in dump
    FXCheckpointer(model, str(folder), teacher=teacher).save("run", classes=class_lists(model), config=dump)
    return folder / "run.pth"


def equal(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_s_checkpoint_is_enough(checkpoint: Path) -> None:
    """Without registered datasets, without download."""
    bundle = read_bundle(checkpoint)
    assert [spec.name for spec in bundle.specs] == ["alpha", "beta"] and bundle.untrained == ()
    content = torch.load(checkpoint)
    for which, state in (("student", content["model"]), ("teacher", content["teacher"])):
        state = {key.removeprefix("model."): value for key, value in state.items()}
        model = bundle.build(which)
        assert equal(model.state_dict(), state) and not model.training
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("trained", "used"), [("torch", "torch"), ("auto", "auto"), ("triton", "auto")])
def test_only_a_sampler_that_cannot_run_is_replaced(make_cfg: MakeCfg, tmp_path: Path, trained: str, used: str) -> None:
    """A model trained on a GPU is used on a CPU."""
    bundle = read_bundle(save(make_cfg(), tmp_path))
    bundle.cfg.MODEL.LOC.SAMPLER = trained
    parts = [m for m in bundle.build().modules() if isinstance(m, DeformableAttention)]
    assert parts and {m.sampler for m in parts} == {used}
    assert bundle.cfg.MODEL.LOC.SAMPLER == trained, "the run's config stays what it was"


@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("name", [".", "model.json", "model.safetensors"])
def test_inference_checkpoint_goes_out_and_comes_back(checkpoint: Path, tmp_path: Path, which: str, name: str) -> None:
    bundle, out = read_bundle(checkpoint), tmp_path / "exported"
    write_inference(bundle, out, which)
    modes = {file.stat().st_mode for file in out.iterdir()}
    assert len(modes) == 1, "whoever may read the description may read the weights"
    again = read_bundle(out / name)
    assert again.specs == bundle.specs and again.cfg.dump() == bundle.cfg.dump()
    assert list(again.states) == [which] and equal(dict(again.states[which]), dict(bundle.states[which]))
    assert again.choose() == which
    with pytest.raises(FXError, match=f"holds no {'student' if which == 'teacher' else 'teacher'}, only the {which}"):
        again.build("student" if which == "teacher" else "teacher")


def test_heads_change_in_student_and_teacher_and_the_rest_is_bit_equal(checkpoint: Path) -> None:
    bundle = read_bundle(checkpoint)
    alpha = bundle.specs[0]
    changed, change = with_heads(bundle, [alpha, GAMMA])
    assert change.dropped == ("cls_heads.beta",)
    assert change.created == ("cls_heads.gamma", "loc_decoders.gamma")
    assert set(changed.untrained) == set(change.created) and changed.trained_tasks(GAMMA) == ()
    for which, state in bundle.states.items():
        after = changed.states[which]
        assert all(torch.equal(after[key], v) for key, v in state.items() if not key.startswith("cls_heads.beta"))
        assert not any("beta" in key for key in after)
    fresh = [{k: v for k, v in changed.states[w].items() if ".gamma." in k} for w in ("student", "teacher")]
    assert fresh[0] and equal(*fresh)
    assert changed.cfg.DATASETS.TRAIN == ("alpha_train", "gamma_train")
    assert changed.cfg.DATASETS.TEST == ("alpha_test", "gamma_test")


def test_changed_heads_survive_the_file_and_training_starts_from_it(
    checkpoint: Path, tmp_path: Path, make_cfg: MakeCfg
) -> None:
    changed, _ = with_heads(read_bundle(checkpoint), [read_bundle(checkpoint).specs[0]])
    path = tmp_path / "new" / "alpha.pth"
    write_training_checkpoint(changed, path)
    again = read_bundle(path)
    assert again.specs == changed.specs and all(equal(again.states[w], changed.states[w]) for w in again.states)
    loaded = load_models(make_cfg("MODEL.WEIGHTS", str(path), "DATASETS.TRAIN", "['alpha_train']"))
    assert equal(loaded["teacher"].state_dict(), dict(changed.states["teacher"]))


def test_untrained_heads_are_remembered(checkpoint: Path, tmp_path: Path) -> None:
    changed, _ = with_heads(read_bundle(checkpoint), [*read_bundle(checkpoint).specs, GAMMA])
    write_training_checkpoint(changed, tmp_path / "a.pth")
    write_inference(read_bundle(tmp_path / "a.pth"), tmp_path / "b")
    assert read_bundle(tmp_path / "b").untrained == ("cls_heads.gamma", "loc_decoders.gamma")
    fewer, _ = with_heads(read_bundle(tmp_path / "b"), read_bundle(checkpoint).specs)
    assert fewer.untrained == ()


def test_heads_of_tasks_that_were_not_trained_are_known(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """A run of one task has random heads for the others."""
    strategy = "[{'task': 'cls', 'share': 1.0, 'train': ['backbone', 'cls_heads']}]"
    bundle = read_bundle(save(make_cfg("SCHEDULE.STRATEGY", strategy), tmp_path))
    assert bundle.untrained == ("loc_decoders.alpha", "seg_heads.alpha")
    assert bundle.trained_tasks(bundle.specs[0]) == ("cls",)
    for_beta = strategy.replace("}", ", 'datasets': ['beta']}")
    bundle = read_bundle(save(make_cfg("SCHEDULE.STRATEGY", for_beta), tmp_path))
    assert bundle.untrained == ("cls_heads.alpha", "loc_decoders.alpha", "seg_heads.alpha")


def test_what_cannot_be_used_says_why(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint)
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    with pytest.raises(FXError, match=r"bare\.pth contains weights without config and class lists"):
        read_bundle(tmp_path / "bare.pth")
    torch.save(content | {"config": "MODEL: {NO_SUCH: 1}"}, tmp_path / "old.pth")
    with pytest.raises(FXError, match=r"old\.pth: its config is not valid in fx_d2 .*NO_SUCH"):
        read_bundle(tmp_path / "old.pth")
    torch.save(content | {"config": content["config"].replace("HIDDEN_DIM: 32", "HIDDEN_DIM: 64")}, tmp_path / "x.pth")
    with pytest.raises(FXError, match=r"x\.pth is of another architecture"):
        read_bundle(tmp_path / "x.pth").build()


def test_a_broken_inference_checkpoint_says_why(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FXError, match=r"model\.json does not exist"):
        read_bundle(tmp_path)
    write_inference(read_bundle(checkpoint), out)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    with pytest.raises(FXError, match=r"model\.safetensors is damaged"):
        read_bundle(out)
    for content in ({"format": "other"}, {"format": "fx_d2_model", "which": "student"}):
        (out / "model.json").write_text(json.dumps(content))
        with pytest.raises(FXError, match=r"model\.json does not describe a model"):
            read_bundle(out)


def test_a_bundle_of_a_teacher_alone_can_be_changed(checkpoint: Path, tmp_path: Path) -> None:
    write_inference(read_bundle(checkpoint), tmp_path / "t", "teacher")
    bundle: Bundle = read_bundle(tmp_path / "t")
    changed, _ = with_heads(bundle, bundle.specs[1:])
    assert list(changed.states) == ["teacher"] and not any("loc" in k for k in changed.states["teacher"] if k[0] == "l")
