"""tools/export.py as a user calls it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from fx_d2.engine.bundle import read_bundle
from fx_d2.engine.export import TensorModel
from fx_d2.predictor import FXPredictor


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("export")


def test_an_inference_checkpoint_of_chosen_heads_predicts_the_same(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [str(tiny_checkpoint), "--output", str(out), "--which", "teacher", "--datasets", "tiny", "--tasks", "loc"]
    assert tool.main(words) == 0
    assert capsys.readouterr().out == f"written  {out / 'model.safetensors'}\nwritten  {out / 'model.json'}\n"
    bundle = read_bundle(out)
    assert {key.split(".")[0] for key in bundle.states["teacher"]} == {"backbone", "loc_encoder", "loc_decoders"}
    image = np.random.default_rng(0).integers(0, 256, (80, 64), dtype=np.uint8)
    found = [FXPredictor.from_checkpoint(path, which="teacher", device="cpu")(image, tasks=["loc"], score_thresh=0.0)
             for path in (out, tiny_checkpoint)]  # fmt: skip
    assert np.array_equal(found[0]["tiny"].boxes, found[1]["tiny"].boxes) and len(found[0]["tiny"].boxes)


def test_a_program_computes_what_the_predictor_says(tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The way from a film to the program's input is resizing, nothing else."""
    words = [str(tiny_checkpoint), "--output", str(tmp_path), "--format", "torch", "--tasks", "cls", "seg"]
    assert tool.main(words) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    outputs = program(torch.from_numpy(cv2.resize(image, (64, 64)))[None, None].float())
    found = FXPredictor.from_checkpoint(tiny_checkpoint, device="cpu")(image)
    assert outputs[0][0].tolist() == pytest.approx(list(found["tiny"].labels.values()), abs=1e-6)
    assert np.array_equal(outputs[1][0].numpy() > 0.5, found["tiny"].masks)
    assert outputs[2][0].tolist() == pytest.approx(list(found["tiny_softmax"].labels.values()), abs=1e-6)


def test_onnx_is_written_with_all_that_has_learned(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversion itself is tested beside fx_d2/engine/export.py."""
    asked: list[TensorModel] = []
    monkeypatch.setattr(tool, "export_program", lambda model, size: asked.append(model) or tuple(size))
    monkeypatch.setattr(tool, "write_onnx", lambda program, model, path: path.write_text(str(program)))
    assert tool.main([str(tiny_checkpoint), "--output", str(tmp_path / "new"), "--format", "onnx"]) == 0
    assert (tmp_path / "new" / "model.onnx").read_text() == "(64, 64)"
    assert asked[0].wanted == {"tiny": ("cls", "loc", "seg"), "tiny_softmax": ("cls",)}


def test_a_folder_that_cannot_be_written_is_one_line(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert tool.main([str(tiny_checkpoint), "--output", str(tmp_path / "file" / "x")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "file") in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datasets", "nih"], "--datasets nih: "),
        (["--datasets", "tiny_softmax", "--tasks", "loc"], "none of the requested heads of tiny_softmax exists"),
        (["--datasets", "tiny", "tiny_softmax", "--tasks", "loc"], "requested heads of tiny_softmax exists"),
    ],
)
def test_wrong_names_are_one_line(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str],
    message: str,
) -> None:  # fmt: skip
    assert tool.main([str(tiny_checkpoint), "--output", str(tmp_path / "x"), *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()
