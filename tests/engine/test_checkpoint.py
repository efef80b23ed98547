import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.engine.checkpoint import FXCheckpointer, begin, class_lists, initialize, load_models, read_checkpoint
from fx_d2.modeling import EMATeacher
from fx_d2.structures import FXError, Phase

MakeCfg = Callable[..., CfgNode]


def _save(cfg: CfgNode, folder: Path) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(1)
    model = build_model(cfg)
    teacher = EMATeacher(build_model(cfg))
    FXCheckpointer(model, str(folder), teacher=teacher).save("m", classes=class_lists(model), iteration=4)
    return model, str(folder / "m.pth")


def test_student_and_teacher_come_back_bit_equal(make_cfg: MakeCfg, tmp_path: Path) -> None:
    model, path = _save(make_cfg(), tmp_path)
    loaded = load_models(make_cfg("MODEL.WEIGHTS", path))
    assert set(loaded) == {"student", "teacher"} and not loaded["student"].training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded["student"].state_dict()[key], value)
    assert not torch.equal(loaded["teacher"].backbone.cls_norm.weight.new_tensor(0), torch.tensor(1.0))
    stored = read_checkpoint(path)["teacher"]
    assert all(torch.equal(loaded["teacher"].state_dict()[k.removeprefix("model.")], v) for k, v in stored.items())


def test_bare_weights_are_a_model(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth")
    assert read_checkpoint(str(tmp_path / "x.pth")).keys() == {"model"}


def test_only_the_models_asked_for(make_cfg: MakeCfg, tmp_path: Path) -> None:
    _, path = _save(make_cfg(), tmp_path)
    assert set(load_models(make_cfg("MODEL.WEIGHTS", path, "TEST.MODELS", "['student']"))) == {"student"}
    with pytest.raises(FXError, match="TEST.MODELS"):
        load_models(make_cfg("MODEL.WEIGHTS", path, "TEST.MODELS", "['techer']"))


def test_another_architecture_is_one_clear_error(make_cfg: MakeCfg, tmp_path: Path) -> None:
    _, path = _save(make_cfg(), tmp_path)
    with pytest.raises(FXError, match=r"m\.pth is of another architecture.*first .*loc_"):
        load_models(make_cfg("MODEL.WEIGHTS", path, "MODEL.LOC.HIDDEN_DIM", "64"))
    content = torch.load(path)
    content["teacher"].popitem()
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(FXError, match=r"x\.pth is of another architecture"):
        load_models(make_cfg("MODEL.WEIGHTS", str(tmp_path / "x.pth")))
    with pytest.raises(FXError, match="unexpected, first cls_heads.beta"):
        load_models(make_cfg("MODEL.WEIGHTS", path, "DATASETS.TRAIN", "['alpha_train']"))


def test_other_class_names_of_equal_number_are_refused(make_cfg: MakeCfg, tmp_path: Path) -> None:
    _, path = _save(make_cfg(), tmp_path)
    model = build_model(make_cfg())
    for key in ("cls_classes", "loc_classes", "seg_classes"):
        content = torch.load(path)
        content["classes"]["alpha"][key] = ["right_blob", "left_blob"]
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(FXError, match=f"alpha was trained with {key}"):
            load_models(make_cfg("MODEL.WEIGHTS", str(tmp_path / "other.pth")))
        with pytest.raises(FXError, match=f"alpha was trained with {key}"):
            FXCheckpointer(model, "").load(str(tmp_path / "other.pth"))


def test_other_processes_than_the_main_one_write_nothing(make_cfg: MakeCfg, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    FXCheckpointer(build_model(make_cfg()), str(folder), save_to_disk=False).save("m")
    assert not list(folder.iterdir())


class _Code:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple:
        return os.getcwd, ()


@pytest.mark.parametrize("kind", ["missing", "empty", "garbage", "truncated", "code", "list"])
def test_unreadable_files_are_named(make_cfg: MakeCfg, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.pth"
    if kind == "garbage":
        path.write_bytes(b"no checkpoint")
    elif kind == "truncated":
        _, good = _save(make_cfg(), tmp_path)
        path.write_bytes(Path(good).read_bytes()[:5000])
    elif kind == "code":
        torch.save({"model": _Code()}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    with pytest.raises(FXError, match="MODEL.WEIGHTS is empty" if kind == "empty" else r"x\.pth"):
        read_checkpoint("" if kind == "empty" else str(path))


def test_initialize_takes_what_fits_and_refuses_what_does_not_at_all(make_cfg: MakeCfg, tmp_path: Path) -> None:
    saved, path = _save(make_cfg("DATASETS.TRAIN", "['beta_train']"), tmp_path)
    model = build_model(make_cfg())
    fresh = model.cls_heads["alpha"].weight.clone()
    initialize(model, path)
    assert torch.equal(model.cls_heads["beta"].weight, saved.cls_heads["beta"].weight)
    assert torch.equal(model.cls_heads["alpha"].weight, fresh)
    torch.save({"model": {"other": torch.zeros(1)}}, path)
    with pytest.raises(FXError, match="matches no weight"):
        initialize(model, path)


def test_initialize_names_each_head_that_is_new_or_not_used(
    make_cfg: MakeCfg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = _save(make_cfg("DATASETS.TRAIN", "['beta_train']"), tmp_path)
    with caplog.at_level("INFO"):
        initialize(build_model(make_cfg("DATASETS.TRAIN", "['alpha_train']")), path)
    lines = caplog.text.splitlines()
    assert "created  cls_heads.alpha, loc_decoders.alpha, seg_heads.alpha" in lines
    assert "dropped  cls_heads.beta" in lines and "kept     none" in lines


def test_initialize_takes_no_head_that_stands_for_other_classes(
    make_cfg: MakeCfg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal shapes would let a head for "left, right" start as one for "right, left"."""
    saved, path = _save(make_cfg(), tmp_path)
    content = torch.load(path)
    content["classes"]["alpha"]["loc_classes"] = ["right_blob", "left_blob"]
    torch.save(content, path)
    model = build_model(make_cfg())
    fresh = model.loc_decoders["alpha"].memory_proj.weight.clone()
    with caplog.at_level("INFO"):
        initialize(model, path)
    assert torch.equal(model.loc_decoders["alpha"].memory_proj.weight, fresh)
    assert torch.equal(model.seg_heads["alpha"].weight, saved.seg_heads["alpha"].weight)
    assert "created  loc_decoders.alpha" in caplog.text.splitlines()


def test_initialize_names_a_head_that_fits_in_part(
    make_cfg: MakeCfg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a decoder of another number of queries: its layers are taken, its query embeddings are not."""
    saved, path = _save(make_cfg(), tmp_path)
    model = build_model(make_cfg("MODEL.LOC.NUM_QUERIES", 7))
    with caplog.at_level("INFO"):
        loaded = initialize(model, path)
    ours, theirs = model.loc_decoders["alpha"], saved.loc_decoders["alpha"]
    assert torch.equal(ours.memory_proj.weight, theirs.memory_proj.weight)
    missing = {f"loc_decoders.alpha.{key}" for key in ours.state_dict()} - loaded
    assert missing and all("quer" in key or "content" in key for key in missing)
    lines = caplog.text.splitlines()
    assert "partial  loc_decoders.alpha" in lines and "created  none" in lines and "dropped  none" in lines


HEAD_ONLY = (Phase("alpha", "loc", ("loc_decoders",)),)


def test_a_run_begins_from_the_model_that_is_asked_for(make_cfg: MakeCfg, tmp_path: Path) -> None:
    _, path = _save(make_cfg(), tmp_path)
    stored = read_checkpoint(path)
    for which, state in (("", stored["model"]), ("student", stored["model"]), ("teacher", stored["teacher"])):
        cfg = make_cfg("MODEL.WEIGHTS", path, "MODEL.WEIGHTS_FROM", which)
        model = build_model(cfg)
        begin(cfg, model, HEAD_ONLY)
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[f"model.{key}" if which == "teacher" else key]), (which, key)
    cfg = make_cfg("MODEL.WEIGHTS", path, "MODEL.WEIGHTS_FROM", "techer")
    with pytest.raises(FXError, match=r"m\.pth holds no techer, only: student, teacher"):
        begin(cfg, model, HEAD_ONLY)


def test_a_frozen_part_does_not_stay_random_unnoticed(
    make_cfg: MakeCfg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trunk's file has no encoder: a run that trains the decoder alone would learn on noise."""
    saved, path = _save(make_cfg(), tmp_path)
    trunk = {key: value for key, value in saved.state_dict().items() if key.startswith("backbone.")}
    torch.save({"model": trunk}, path)
    cfg = make_cfg("MODEL.WEIGHTS", path)
    with pytest.raises(FXError, match="no pass of SCHEDULE.STRATEGY trains loc_encoder"):
        begin(cfg, build_model(cfg), iter(HEAD_ONLY))
    begin(cfg, build_model(cfg), (*HEAD_ONLY, Phase("alpha", "loc", ("loc_encoder", "loc_decoders"))))
    cfg = make_cfg()
    begin(cfg, build_model(cfg), HEAD_ONLY)
    assert "no pass of SCHEDULE.STRATEGY trains backbone, and MODEL.WEIGHTS is empty" in caplog.text
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.KWARGS.pretrained = True  # timm has filled the trunk
    caplog.clear()
    begin(cfg, build_model(make_cfg()), HEAD_ONLY)
    assert "no pass of SCHEDULE.STRATEGY trains loc_encoder, and MODEL.WEIGHTS is empty" in caplog.text
    # Nor does a part of a part: an encoder of another width fits in a few places.
    wide = make_cfg("MODEL.WEIGHTS", str(tmp_path / "whole.pth"), "MODEL.LOC.FFN_DIM", "48")
    torch.save({"model": saved.state_dict()}, tmp_path / "whole.pth")
    with pytest.raises(FXError, match=r"lacks \d+ of its weights, such as loc_encoder"):
        begin(wide, build_model(wide), HEAD_ONLY)
