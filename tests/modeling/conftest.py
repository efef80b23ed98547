"""A tiny student and its teacher."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.modeling import EMATeacher, FoundationX


@pytest.fixture
def model(tiny_cfg: CfgNode) -> FoundationX:
    torch.manual_seed(0)
    return build_model(tiny_cfg)


@pytest.fixture
def teacher(model: FoundationX) -> EMATeacher:
    """Of a student that has moved away since."""
    teacher = EMATeacher(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return teacher
