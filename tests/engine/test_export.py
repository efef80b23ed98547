"""The exported graphs compute what the model computes, for any batch."""

import importlib.util
import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine.export import TensorModel, describe, export_program, write_onnx, write_torch
from fx_d2.modeling import FoundationX
from fx_d2.structures import DatasetSpec, FXError

ALL = DatasetSpec(name="all", title="All", cls_classes=("a", "b"), loc_classes=("n", "m"), seg_classes=("x", "y"))
SOFT = DatasetSpec(name="soft", title="Soft", cls_classes=("p", "q", "r"), cls_kind="softmax")
WANTED = {"all": ("cls", "loc", "seg"), "soft": ("cls",)}
SIZE = (64, 48)


@pytest.fixture
def model(tiny_cfg: CfgNode) -> TensorModel:
    """As small as a graph can be: tracing and converting take time by the number of nodes."""
    tiny_cfg.INPUT.SIZE = list(SIZE)
    tiny_cfg.MODEL.LOC.update({"STAGES": [3], "DEC_LAYERS": 2})
    torch.manual_seed(0)
    return TensorModel(FoundationX(tiny_cfg, specs=[ALL, SOFT]).eval().requires_grad_(False), WANTED).eval()


def images(count: int) -> torch.Tensor:
    torch.manual_seed(count)
    return torch.rand(count, 1, *SIZE) * 255


def test_the_tensors_are_those_of_prediction(model: TensorModel) -> None:
    batch = images(3).round().to(torch.uint8)
    outputs = dict(zip(model.names, model(batch.float()), strict=True))
    samples = [{"image": x, "height": SIZE[0], "width": SIZE[1]} for x in batch]
    for i, found in enumerate(model.model.predict(samples, WANTED)):
        assert torch.allclose(outputs["all/cls"][i], found["all"]["cls"], atol=1e-6)
        assert torch.allclose(outputs["soft/cls"][i], found["soft"]["cls"], atol=1e-6)
        assert torch.allclose(outputs["all/seg"][i], found["all"]["seg"], atol=1e-6)
        best = found["all"]["instances"]
        score, kind, box = best.scores[0], best.pred_classes[0], best.pred_boxes.tensor[0]
        query = outputs["all/loc_scores"][i, :, kind].argmax()
        assert outputs["all/loc_scores"][i].max() == pytest.approx(score.item(), abs=1e-6)
        scaled = outputs["all/loc_boxes"][i, query].clamp(0, 1) * torch.tensor([SIZE[1], SIZE[0]] * 2)
        assert torch.allclose(scaled, box, atol=1e-3)


def test_torch_and_onnx_compute_the_same_for_any_batch(model: TensorModel, tmp_path: Path) -> None:
    program = export_program(model, SIZE)
    write_torch(program, model, tmp_path / "m.pt2")
    write_onnx(program, model, tmp_path / "m.onnx")
    extra = {"description.json": ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(extra["description.json"]) == describe(model)
    assert json.loads(session.get_modelmeta().custom_metadata_map["fx_d2"]) == describe(model)
    assert [x.name for x in session.get_inputs()] == ["images"]
    assert [x.name for x in session.get_outputs()] == model.names
    assert {x.version for x in onnx.load(tmp_path / "m.onnx").opset_import if not x.domain} == {20}
    for count in (1, 2, 5):
        batch = images(count)
        expected = model(batch)
        for name, want, ours, theirs in zip(
            model.names, expected, loaded(batch), session.run(None, {"images": batch.numpy()}), strict=True
        ):
            assert torch.allclose(ours, want, atol=1e-6), name
            assert want.std() > 1e-4, f"{name} is constant: equality would say nothing"
            assert np.allclose(theirs, want.numpy(), atol=1e-4), (name, count)


def test_names_and_classes_are_described(model: TensorModel) -> None:
    assert model.names == ["all/cls", "all/loc_scores", "all/loc_boxes", "all/seg", "soft/cls"]
    assert describe(model)["classes"] == {
        "all": {"cls": ["a", "b"], "loc": ["n", "m"], "seg": ["x", "y"]},
        "soft": {"cls": ["p", "q", "r"]},
    }


def test_a_missing_package_names_the_extra(model: TensorModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(FXError, match=r"package onnxscript: pip install -e '\.\[export\]'"):
        write_onnx(None, model, tmp_path / "m.onnx")  # type: ignore[arg-type]


def test_an_error_of_onnx_is_one_line(model: TensorModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, reason in ((RuntimeError("no operator\nand a trace"), "no operator"), (RuntimeError(), "RuntimeError")):
        monkeypatch.setattr(torch.onnx, "export", Mock(side_effect=error))
        with pytest.raises(FXError, match=f"cannot be exported to ONNX: {reason}$"):
            write_onnx(None, model, tmp_path / "m.onnx")  # type: ignore[arg-type]


def test_a_trunk_that_cannot_be_traced_is_named(model: TensorModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def branches(images: torch.Tensor) -> None:
        if images.sum() > 0:
            raise RuntimeError

    monkeypatch.setattr(model.model.backbone, "forward", branches)
    with pytest.raises(FXError, match="torch.export cannot trace swin_tiny"):
        export_program(model, SIZE)
