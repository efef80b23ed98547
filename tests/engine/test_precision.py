import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine.precision import LEAST_SCALE, amp_dtype, cpu_has_bfloat16, step_unless_overflown
from fx_d2.structures import FXError


@pytest.mark.parametrize(
    ("enabled", "name", "device", "dtype"),
    [
        (False, "float16", "cpu", None),
        (True, "bfloat16", "cpu", torch.bfloat16),
        (True, "float16", "cuda:0", torch.float16),
    ],
)
def test_type_of_autocast(tiny_cfg: CfgNode, enabled: bool, name: str, device: str, dtype: torch.dtype | None) -> None:
    tiny_cfg.SOLVER.AMP.update({"ENABLED": enabled, "DTYPE": name})
    tiny_cfg.MODEL.DEVICE = device
    assert amp_dtype(tiny_cfg) == dtype


@pytest.mark.parametrize(("name", "message"), [("half", "DTYPE is 'half'"), ("float16", "float16 needs a GPU")])
def test_types_that_are_refused(tiny_cfg: CfgNode, name: str, message: str) -> None:
    tiny_cfg.SOLVER.AMP.update({"ENABLED": True, "DTYPE": name})
    with pytest.raises(FXError, match=message):
        amp_dtype(tiny_cfg)


@pytest.mark.parametrize(
    ("name", "known"), [("avx512_bf16", True), ("amx_bf16", True), ("bf16", True), ("avx2", False)]
)
def test_a_processor_without_bfloat16_is_named_once(
    tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, known: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, name: True})
    amp_dtype(tiny_cfg)
    assert not caplog.messages
    tiny_cfg.SOLVER.AMP.ENABLED = True
    amp_dtype(tiny_cfg)
    assert cpu_has_bfloat16() == known and len(caplog.messages) == (not known)
    assert known or "SOLVER.AMP.ENABLED False" in caplog.text


@pytest.mark.parametrize("known", [True, False])
def test_a_gpu_without_bfloat16_is_named(
    tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, known: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: known or including_emulation)
    tiny_cfg.MODEL.DEVICE, tiny_cfg.SOLVER.AMP.ENABLED = "cuda", True
    assert amp_dtype(tiny_cfg) == torch.bfloat16
    assert caplog.messages == [] if known else "SOLVER.AMP.DTYPE float16" in caplog.text


def _step(scaler: torch.amp.GradScaler, weight: torch.nn.Parameter, loss: torch.Tensor) -> float | None:
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    finite = bool(torch.nn.utils.clip_grad_norm_([weight], 1.0).isfinite())
    return step_unless_overflown(scaler, optimizer, finite)


def test_an_overflow_leaves_the_weights_alone_and_halves_the_scale_and_calm_doubles_it() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=2)
    weight = torch.nn.Parameter(torch.ones(2))
    assert _step(scaler, weight, (weight * 1e4).sum()) == 2.0**119 and weight.tolist() == [1, 1]
    scaler.load_state_dict(scaler.state_dict() | {"scale": 4.0})
    weight.grad = None
    assert _step(scaler, weight, weight.sum()) == 4 and weight.tolist() != [1, 1]
    assert _step(scaler, weight, weight.sum()) == 8


def test_a_gradient_that_is_infinite_at_any_scale_stops_the_run() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_SCALE * 1.5)
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(FXError, match="overflow in float16 even with a loss scale of 8e-05"):
        _step(scaler, weight, (weight * torch.inf).sum())


def test_without_a_scaler_the_step_is_the_optimizer_s() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    assert _step(torch.amp.GradScaler("cpu", enabled=False), weight, weight.sum()) is None
    assert weight.tolist() != [1, 1]
