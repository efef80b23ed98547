"""From another program's file to MODEL.WEIGHTS."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from detectron2.modeling import build_model

from fx_d2.data import register_rows
from fx_d2.engine import build_cfg, load_models
from fx_d2.engine.checkpoint import initialize
from fx_d2.structures import FXError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
VERSION: 2
DATASETS: {TRAIN: [siim_acr_train, nih_shenzhen_train], TEST: []}
INPUT: {SIZE: [64, 64]}
MODEL:
  DEVICE: cpu
  TIMM:
    NAME: swin_tiny_patch4_window7_224
    KWARGS: {embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 4}
  LOC: {HIDDEN_DIM: 64, NUM_HEADS: 2, NUM_POINTS: 2, FFN_DIM: 32, ENC_LAYERS: 1, DEC_LAYERS: 2, NUM_QUERIES: 10}
  SEG: {DIM: 16, POOL_BINS: [1, 2]}
"""

Run = Callable[..., None]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fx_convert_checkpoint", ROOT / "tools" / "convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model of two datasets whose data is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return "small.yaml"


@pytest.fixture
def run(tool: ModuleType, config: str) -> Run:
    return lambda *words: tool.convert(tool.argument_parser().parse_args([*words, "--config-file", config]))


def model_of(config: str, *opts: str) -> torch.nn.Module:
    cfg = build_cfg(config, list(opts))
    register_rows(cfg)
    return build_model(cfg)


def test_student_and_teacher_can_be_evaluated(run: Run, config: str) -> None:
    """A pair under the authors' keys; their names are tested elsewhere. --eval-only wants every weight."""
    student, teacher = model_of(config), model_of(config)
    torch.save({"model": student.state_dict(), "teacher_model": teacher.state_dict(), "epoch": 3}, "source.pth")
    run("source.pth", "--output", "new/out.pth")
    loaded = load_models(build_cfg(config, ["MODEL.WEIGHTS", "new/out.pth"]))
    for name, want in (("student", student), ("teacher", teacher)):
        for key, value in want.named_parameters():
            assert torch.equal(loaded[name].get_parameter(key), value)
    assert not list(Path("new").glob("*.part"))


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_one_of_the_pair(run: Run, config: str, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    models = {"model": model_of(config), "teacher_model": model_of(config)}
    torch.save({key: model.state_dict() for key, model in models.items()}, "source.pth")
    run("source.pth", "--output", "out.pth", "--which", which)
    content = torch.load("out.pth", weights_only=True)
    assert set(content) == {"model", "classes"} and set(content["classes"]) == {"siim_acr", "nih_shenzhen"}
    want = models["model" if which == "student" else "teacher_model"].cls_heads["siim_acr"].weight
    assert torch.equal(content["model"]["cls_heads.siim_acr.weight"], want)
    assert f"fx_d2 layout, {which}" in capsys.readouterr().out


def test_a_trunk_starts_a_training_with_and_without_the_tool(
    run: Run, config: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    small = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, **small).state_dict()
    torch.save({"state_dict": {}, "teacher": {f"module.{key}": value for key, value in swin.items()}}, "ark.pth")
    run("ark.pth", "--output", "out.pth")
    assert "Swin layout, teacher" in capsys.readouterr().out
    content = torch.load("out.pth", weights_only=True)
    assert set(content) == {"model"}, "a trunk says nothing about classes"
    for path in ("ark.pth", "out.pth"):
        model = model_of(config)
        with caplog.at_level(logging.INFO, "fx_d2"):
            initialize(model, path)
        assert torch.equal(
            model.backbone.trunk.layers_3.blocks[0].mlp.fc1.weight, swin["layers.3.blocks.0.mlp.fc1.weight"]
        )
        assert torch.equal(model.backbone.cls_norm.weight, swin["norm.weight"])
    assert "ark.pth: Swin layout" in caplog.text and "out.pth: fx_d2 layout" in caplog.text
    assert "loc_decoders" in caplog.text


def test_wrong_files_leave_nothing(run: Run) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, "strange.pth")
    with pytest.raises(FXError, match="matches no weight"):
        run("strange.pth", "--output", "out.pth")
    with pytest.raises(FXError, match="holds no teacher"):
        run("strange.pth", "--output", "out.pth", "--which", "teacher")
    with pytest.raises(FXError, match=r"missing\.pth does not exist"):
        run("missing.pth", "--output", "out.pth")
    with pytest.raises(FXError, match="is the source itself"):
        run("strange.pth", "--output", "./strange.pth")
    assert sorted(path.name for path in Path().iterdir()) == ["small.yaml", "strange.pth"]


def test_an_output_that_cannot_be_written(run: Run, config: str) -> None:
    torch.save(model_of(config).state_dict(), "source.pth")
    Path("taken").touch()
    with pytest.raises(FXError, match=r"checkpoint taken/out\.pth could not be written"):
        run("source.pth", "--output", "taken/out.pth")
