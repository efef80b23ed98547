from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.engine.optimizer import build_lr_schedule, build_optimizer, check_groups
from fx_d2.structures import FXError

MakeCfg = Callable[..., CfgNode]


def test_every_parameter_is_in_exactly_one_group_with_its_components_rate(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.LR_FACTOR.BACKBONE", "0.25", "SOLVER.WEIGHT_DECAY", "0.5")
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert len(group_of) == sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    rates = {name: group_of[id(p)]["lr"] for name, p in model.named_parameters()}
    assert {rate for name, rate in rates.items() if name.startswith("backbone")} == {0.25 * 0.001}
    assert {rate for name, rate in rates.items() if name.startswith("loc_")} == {0.001}
    norms = [group_of[id(m.weight)] for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {g["weight_decay"] for g in norms} == {0.0}
    assert group_of[id(model.cls_heads["alpha"].weight)]["weight_decay"] == 0.5


def test_a_forgotten_parameter_is_named(make_cfg: MakeCfg) -> None:
    model = build_model(make_cfg())
    everything = list(model.parameters())
    with pytest.raises(RuntimeError, match="backbone.trunk.patch_embed"):
        check_groups(model, [{"params": everything[1:]}])
    with pytest.raises(RuntimeError, match="exactly one"):
        check_groups(model, [{"params": everything}, {"params": everything[:1]}])


def test_unknown_optimizer(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.OPTIMIZER", "sgdd")
    with pytest.raises(FXError, match="sgdd"):
        build_optimizer(cfg, build_model(cfg))


def test_rate_rises_linearly_over_the_warm_up_then_falls_as_half_a_cosine(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.WARMUP_CYCLES", "1.0")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 1.0}])
    schedule = build_lr_schedule(cfg, optimizer, total=100, cycle=20)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1 / 20)
    rise = torch.tensor(rates[:20]).diff()
    assert torch.allclose(rise, rise[:1].expand_as(rise), atol=1e-6) and (rise > 0).all()
    assert max(rates) == pytest.approx(rates[20], abs=1e-2)
    assert (torch.tensor(rates[21:]).diff() < 0).all() and rates[-1] < 0.001
    assert rates[60] == pytest.approx(0.3455, abs=0.01)  # half a cosine over all 100 iterations: (1 + cos(.6 pi)) / 2
