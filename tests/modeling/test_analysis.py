"""The counts against arithmetic by hand and against numbers that others have published."""

import pytest
from detectron2.config import CfgNode

from fx_d2.modeling import FoundationX
from fx_d2.modeling.analysis import Cost, component_costs
from fx_d2.structures import COMPONENTS, DatasetSpec, FXError

SPEC = DatasetSpec(name="x", title="X", cls_classes=("a", "b"), loc_classes=("n", "m", "o"), seg_classes=("s",))
SIZE = (64, 96)
LEVELS = [(8, 12), (4, 6), (2, 3), (1, 2)]
"""Maps of strides 8, 16, 32, and 64 (rounded up): those of the encoder."""
N = sum(h * w for h, w in LEVELS)
CHANNELS = [32, 64, 128]
"""Of the trunk's last three stages, with the width of 16 of tiny_cfg."""


@pytest.fixture
def costs(tiny_cfg: CfgNode) -> dict[str, Cost]:
    tiny_cfg.freeze()
    return {cost.component: cost for cost in component_costs(tiny_cfg, SPEC, SIZE)}


def attention(queries: int, dim: int, heads: int, points: int) -> int:
    """Deformable attention: values of all tokens; offsets (x, y) and weights; output; samples at 5 x 2 each."""
    sampled = heads * len(LEVELS) * points
    linear = N * dim * dim + queries * dim * 3 * sampled + queries * dim * dim
    return 2 * linear + 10 * queries * sampled * (dim // heads)


def test_the_encoder_by_hand(costs: dict[str, Cost], tiny_cfg: CfgNode) -> None:
    node = tiny_cfg.MODEL.LOC
    dim, hidden = node.HIDDEN_DIM, node.FFN_DIM
    projections = [c * dim * h * w for c, (h, w) in zip(CHANNELS, LEVELS, strict=False)] + [9 * 128 * dim * 2]
    layer = attention(N, dim, node.NUM_HEADS, node.NUM_POINTS) + 2 * 2 * N * dim * hidden
    assert costs["loc_encoder"].flops == 2 * sum(projections) + node.ENC_LAYERS * layer


def test_a_decoder_by_hand(costs: dict[str, Cost], tiny_cfg: CfgNode) -> None:
    node = tiny_cfg.MODEL.LOC
    dim, hidden, q, k = node.HIDDEN_DIM, node.FFN_DIM, node.NUM_QUERIES, len(SPEC.loc_classes)
    box = 2 * q * (2 * dim * dim + 4 * dim)
    proposals = 2 * N * (2 * dim * dim + dim * k) + box
    own = 2 * q * 4 * dim * dim + 2 * 2 * q * q * dim  # three inputs and the output; scores and their sum
    positions, ffn = 2 * q * 3 * dim * dim, 2 * 2 * q * dim * hidden
    layer = own + attention(q, dim, node.NUM_HEADS, node.NUM_POINTS) + positions + ffn + 2 * q * dim * k + box
    assert costs["loc_decoders"].flops == proposals + node.DEC_LAYERS * layer


def test_heads_by_hand(costs: dict[str, Cost]) -> None:
    assert costs["cls_heads"] == Cost("cls_heads", 2 * 128 + 2, 2 * 128 * 2, frozenset())
    assert costs["seg_heads"] == Cost("seg_heads", 9 * 16 + 1, 2 * 9 * 16 * 16 * 24, frozenset())


def test_what_is_not_counted_is_named(costs: dict[str, Cost]) -> None:
    """Norms and activations are; samples, attention and whatever only looks at a tensor are not."""
    named = set().union(*(cost.uncounted for cost in costs.values()))
    assert {"aten.native_layer_norm", "aten.gelu", "aten._softmax", "aten.upsample_bilinear2d"} <= named
    assert "aten.gelu" in costs["backbone"].uncounted and "aten.gelu" not in costs["loc_encoder"].uncounted
    words = ("grid_sampler", "attention", "mm", "convolution", "view.", "transpose", "empty")
    assert not [name for name in named if any(word in name for word in words)]


def test_parameters_are_those_of_the_model(costs: dict[str, Cost], tiny_cfg: CfgNode) -> None:
    cfg = tiny_cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = list(SIZE)  # a window is no larger than its map, so the size has a say
    model = FoundationX(cfg, specs=[SPEC])
    assert set(costs) == set(COMPONENTS)
    assert sum(cost.parameters for cost in costs.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("fused", [True, False])
def test_the_trunk_is_the_published_one(tiny_cfg: CfgNode, fused: bool) -> None:
    """Swin-T at 224: 28 M parameters with, 27.5 without its classifier, and 4.5 G multiply-adds (Liu et al., 2021)."""
    tiny_cfg.MODEL.TIMM.KWARGS = CfgNode(new_allowed=True)
    tiny_cfg.MODEL.TIMM.FUSED_ATTENTION = fused
    trunk = component_costs(tiny_cfg, SPEC, (224, 224))[0]
    assert trunk.component == "backbone" and trunk.flops / 2e9 == pytest.approx(4.5, abs=0.02)
    assert trunk.parameters / 1e6 == pytest.approx(27.5, abs=0.05)


def test_a_row_without_a_task_is_refused(tiny_cfg: CfgNode) -> None:
    with pytest.raises(FXError, match=r"'x' has only \['cls', 'seg'\]"):
        component_costs(tiny_cfg, SPEC.limited_to(["cls", "seg"]), SIZE)
