"""The pyramid, layer by layer."""

import pytest
import torch
from detectron2.layers import get_norm
from torch import nn
from torch.nn import functional as F

from fx_d2.modeling.segmentation import PyramidPooling, SegDecoder, segmentation_head

CHANNELS = (8, 12, 16, 24)
SIZES = ((16, 12), (8, 6), (4, 3), (2, 2))


def decoder(norm: str = "BN", dropout: float = 0.1) -> SegDecoder:
    torch.manual_seed(0)
    return SegDecoder(in_channels=CHANNELS, dim=10, bins=(1, 2), norm=norm, dropout=dropout)


def features(batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]


def test_output_is_at_the_finest_stride() -> None:
    model = decoder().eval()
    out = model(features())
    assert out.shape == (2, 10, 16, 12) and (out >= 0).all()
    assert segmentation_head(10, 3)(out).shape == (2, 3, 16, 12)


def test_the_reference_s_layout() -> None:
    """Not recursive: each level adds the lateral of the next coarser one, not the accumulated pyramid."""
    model, (s1, s2, s3, s4) = decoder().eval(), features()

    def up(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)

    l2, l3, l4 = model.laterals[0](s2), model.laterals[1](s3), model.laterals[2](model.pooling(s4))
    p1, p2, p3 = model.smooth[0](up(l2, s1) + s1), model.smooth[1](up(l3, l2) + l2), model.smooth[2](up(l4, l3) + l3)
    want = model.fuse(torch.cat([p1, up(p2, s1), up(p3, s1), up(l4, s1)], dim=1))
    assert torch.allclose(model(features()), want, atol=1e-6)


def test_the_kinds_of_convolutions() -> None:
    model = decoder()
    kinds = {n: (m.kernel_size[0], m.bias is not None) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for part, want in (
        ("laterals", (1, True)),
        ("smooth", (3, True)),
        ("fuse", (3, False)),
        ("pooling.stages", (1, False)),
        ("pooling.bottleneck", (3, False)),
    ):
        assert {kind for name, kind in kinds.items() if name.startswith(part)} == {want}, part
    head = segmentation_head(10, 3)
    assert head.kernel_size == (3, 3) and head.bias is not None
    assert isinstance(model.pooling.dropout, nn.Dropout2d) and model.pooling.dropout.p == 0.1


def test_features_are_not_changed_in_place() -> None:
    given = features()
    kept, ids = [x.clone() for x in given], [id(x) for x in given]
    decoder()(given)
    assert [id(x) for x in given] == ids and all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_pooling_adds_the_mean_of_each_bin() -> None:
    model = PyramidPooling(channels=4, bins=(1, 2), norm="", dropout=0.0)
    x = torch.rand(1, 4, 4, 4)
    seen = {}
    model.bottleneck.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    for stage in model.stages:
        nn.init.zeros_(stage.weight)
        stage.weight.data[:, :2, 0, 0] = torch.eye(2)
    assert model(x).shape == x.shape
    got = seen["x"]
    assert torch.equal(got[:, :4], x) and got.shape[1] == 8
    assert torch.allclose(got[0, 4], x[0, 0].mean().expand(4, 4))
    assert got[0, 6, 0, 0].item() == pytest.approx(x[0, 0, :2, :2].mean().item())
    assert got[0, 7, 3, 3].item() == pytest.approx(x[0, 1, 2:, 2:].mean().item())


def test_dropout_only_while_training() -> None:
    model, x = decoder(dropout=0.5), features()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_evaluation_keeps_the_running_statistics() -> None:
    model = decoder()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    assert before
    model.eval()(features())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    model.train()(features())
    assert not any(torch.equal(model.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("norm", ["BN", "LN", ""])
def test_the_norm_is_a_detectron2_name(norm: str) -> None:
    model = decoder(norm)
    want = type(get_norm(norm, 10))
    assert isinstance(model.fuse.norm, want) and isinstance(model.pooling.bottleneck.norm, want)
    assert model(features()).shape == (2, 10, 16, 12)


def test_every_parameter_learns() -> None:
    model = decoder()
    model(features()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_maps_are_resized_in_float32_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """And come back in their type: the gradient of a place is a sum over many, as of a bin over the whole map."""
    seen, resize = [], F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, **options: seen.append(x.dtype) or resize(x, **options))
    model = decoder().bfloat16()
    assert model([x.bfloat16() for x in features()]).dtype == torch.bfloat16 and set(seen) == {torch.float32}
