import logging
from collections import Counter
from collections.abc import Callable

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from timm.optim import param_groups_layer_decay

from fx_d2.engine import PhaseSchedule
from fx_d2.engine.optimizer import build_lr_schedule, build_optimizer, check_groups, layer_scales, parameter_groups
from fx_d2.modeling import FoundationX
from fx_d2.structures import FXError, Phase

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


def test_a_forgotten_parameter_is_named(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(make_cfg())
    everything = list(model.parameters())
    with pytest.raises(RuntimeError, match="backbone.trunk.patch_embed"):
        check_groups(model, [{"params": everything[1:]}])
    with pytest.raises(RuntimeError, match="exactly one"):
        check_groups(model, [{"params": everything}, {"params": everything[:1]}])
    monkeypatch.setattr("fx_d2.engine.optimizer.parameter_groups", lambda cfg, model: [{"params": everything[1:]}])
    with pytest.raises(RuntimeError, match="exactly one"):
        build_optimizer(make_cfg(), model)


def _groups(make_cfg: MakeCfg, *opts: str) -> tuple[FoundationX, dict[str, dict], list[dict]]:
    """Model, name of each parameter -> its group, groups."""
    cfg = make_cfg(*opts)
    model = build_model(cfg)
    groups = parameter_groups(cfg, model)
    check_groups(model, groups)
    group_of = {id(p): group for group in groups for p in group["params"]}
    return model, {name: group_of[id(p)] for name, p in model.named_parameters()}, groups


def test_matrices_norms_biases_and_tables_decay_by_their_own_keys(make_cfg: MakeCfg) -> None:
    keys = (".5", "_NORM", ".1", "_BIAS", ".2", "_EMBED", ".3")
    opts = [f"SOLVER.WEIGHT_DECAY{x}" if x.startswith("_") else x for x in keys]
    model, found, groups = _groups(make_cfg, "SOLVER.WEIGHT_DECAY", *opts)
    decays = {name: group["weight_decay"] for name, group in found.items()}
    for end, decay in (
        ("trunk.layers_0.blocks.0.attn.relative_position_bias_table", 0.3),
        ("trunk.layers_0.blocks.0.mlp.fc1.weight", 0.5),
        ("trunk.patch_embed.proj.weight", 0.5),
        ("trunk.patch_embed.norm.bias", 0.2),
        ("cls_norm.weight", 0.1),
        ("loc_encoder.level_embed", 0.3),
        ("alpha.query_embed.weight", 0.3),
        ("alpha.label_embed.weight", 0.3),
        ("alpha.layers.0.self_attention.in_proj_bias", 0.2),
        ("alpha.layers.0.self_attention.in_proj_weight", 0.5),
        ("layers.0.attention.sampling_offsets.bias", 0.2),
        ("seg_decoder.fuse.norm.weight", 0.1),
    ):
        names = [name for name in decays if name.endswith(end)]
        assert names and {decays[name] for name in names} == {decay}, end
    assert {decays[name] for name, p in model.named_parameters() if p.ndim > 1} == {0.5, 0.3}
    # Two rates, each with four decays.
    assert len(groups) == 8


def test_equal_numbers_are_one_group(make_cfg: MakeCfg) -> None:
    rates = ("SOLVER.LR_FACTOR.BACKBONE", "1.0", "SOLVER.LR_FACTOR.CLS_HEADS", "1.0")
    decays = [x for key in ("NORM", "BIAS", "EMBED") for x in (f"SOLVER.WEIGHT_DECAY_{key}", "0.0001")]
    assert len(_groups(make_cfg, *rates, *decays)[2]) == 1
    assert len(_groups(make_cfg, *rates)[2]) == 2
    assert len(_groups(make_cfg)[2]) == 4


def test_layer_decay_reaches_the_trunk_only_and_falls_towards_the_stem(make_cfg: MakeCfg) -> None:
    opts = ("SOLVER.LAYER_DECAY", "0.5", "SOLVER.LR_FACTOR.BACKBONE", "1.0", "SOLVER.LR_FACTOR.CLS_HEADS", "0.25")
    _, found, _ = _groups(make_cfg, *opts)
    rates = {name: group["lr"] / 0.001 for name, group in found.items()}
    trunk = "backbone.trunk."
    for start, rate in (
        (f"{trunk}patch_embed", 0.5**5),
        (f"{trunk}layers_0.blocks.0", 0.5**4),
        (f"{trunk}layers_1", 0.5**3),
        (f"{trunk}layers_3", 0.5),
        ("backbone.cls_norm", 1.0),
        ("backbone.loc_norms", 1.0),
        ("cls_heads", 0.25),
        ("loc_encoder", 1.0),
    ):
        assert {value for name, value in rates.items() if name.startswith(start)} == {rate}, start


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1), "embed_dim": 24}),
        ("convnext_atto", {}),
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"depth": 3}),
    ],
)
def test_layer_decay_is_timm_s(name: str, kwargs: dict) -> None:
    whole = timm.create_model(name, **kwargs, num_classes=0)
    # timm counts the last norm to the last block. A trunk has none: those of our tasks are parts of their own.
    for norm in ("norm", "head"):
        if hasattr(whole, norm):
            setattr(whole, norm, torch.nn.Identity())
    want = {}
    for group in param_groups_layer_decay(whole, 0.1, layer_decay=0.5):
        shapes = Counter(tuple(p.shape) for p in group["params"])
        want[group["lr_scale"]] = want.get(group["lr_scale"], Counter()) + shapes
    trunk = timm.create_model(name, features_only=True, **kwargs)
    got: dict[float, Counter] = {}
    for parameter, scale in layer_scales(trunk, 0.5).items():
        got.setdefault(2 * scale, Counter())[tuple(parameter.shape)] += 1
    # Without a head its largest is 1.
    assert got == want and len(got) > 3


def test_what_follows_the_last_block_counts_to_it() -> None:
    trunk = torch.nn.Module()
    trunk.stem = torch.nn.Linear(1, 1)
    trunk.blocks = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
    trunk.norm = torch.nn.LayerNorm(1)
    scales = layer_scales(trunk, 0.5)
    assert [scales[p] for p in trunk.parameters()] == [0.125] * 2 + [0.25] * 2 + [0.5] * 4


def test_layer_decay_needs_blocks(make_cfg: MakeCfg) -> None:
    model = build_model(make_cfg())
    model.backbone.trunk = torch.nn.Linear(2, 2)
    with pytest.raises(FXError, match="LAYER_DECAY: Linear has no blocks"):
        layer_scales(model.backbone.trunk, 0.5)
    check_groups(model, parameter_groups(make_cfg(), model))


@pytest.mark.parametrize(
    ("name", "kind", "way"), [("adamw", torch.optim.AdamW, "fused"), ("sgd", torch.optim.SGD, "foreach")]
)
def test_optimizers_take_all_tensors_at_once(make_cfg: MakeCfg, name: str, kind: type, way: str) -> None:
    cfg = make_cfg("SOLVER.OPTIMIZER", name, "SOLVER.MOMENTUM", "0.7", "SOLVER.NESTEROV", "True")
    optimizer = build_optimizer(cfg, build_model(cfg))
    assert type(optimizer) is kind and all(group[way] for group in optimizer.param_groups)
    for group in optimizer.param_groups if name == "sgd" else ():
        assert (group["momentum"], group["nesterov"]) == (0.7, True)


def test_unknown_optimizer(make_cfg: MakeCfg) -> None:
    cfg = make_cfg("SOLVER.OPTIMIZER", "sgdd")
    with pytest.raises(FXError, match="sgdd"):
        build_optimizer(cfg, build_model(cfg))


def _rates(cfg: CfgNode, schedule: PhaseSchedule) -> list[float]:
    """The learning rate of each iteration, of a base of 1."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 1.0}])
    scheduler = build_lr_schedule(cfg, optimizer, schedule)
    rates = []
    for _ in range(schedule.total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


CLS = Phase("alpha", "cls", ("backbone",))


def test_rate_rises_linearly_over_the_warm_up_then_falls_as_half_a_cosine(make_cfg: MakeCfg) -> None:
    rates = _rates(make_cfg("SOLVER.WARMUP_CYCLES", "1.0"), PhaseSchedule([CLS], [20], 5))
    assert rates[0] == pytest.approx(1 / 20)
    rise = torch.tensor(rates[:20]).diff()
    assert torch.allclose(rise, rise[:1].expand_as(rise), atol=1e-6) and (rise > 0).all()
    assert (torch.tensor(rates[20:]).diff() < 0).all() and rates[-1] < 0.001
    assert rates[60] == pytest.approx(0.5)  # half way between the end of the warm-up and that of the run


def test_the_last_rate_is_the_final_factor(make_cfg: MakeCfg) -> None:
    rates = _rates(make_cfg("SOLVER.FINAL_LR_FACTOR", "0.2"), PhaseSchedule([CLS], [20], 5))
    assert rates[-1] == min(rates[20:]) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("cycles", [0.0, 1.0, 10.0, 24.0])
def test_the_full_rate_is_reached_however_long_the_warm_up(make_cfg: MakeCfg, cycles: float) -> None:
    """Fine-tuning warms up over 10 of 25 cycles."""
    rates = _rates(make_cfg("SOLVER.WARMUP_CYCLES", str(cycles)), PhaseSchedule([CLS], [8], 25))
    assert rates.index(max(rates)) == 8 * cycles and max(rates) == pytest.approx(1.0)


def test_set_once_a_cycle_rates_are_the_reference_s(make_cfg: MakeCfg) -> None:
    """Twenty slots a cycle, 150 cycles; the figures are what its schedule gives at slots 1, 21, 41, 381 and 1501."""
    phases = [Phase(f"d{i}", task, ("backbone",)) for i in range(10) for task in ("cls", "loc", "loc")]
    schedule = PhaseSchedule(phases, [2] * 30, 150)
    rates = _rates(make_cfg("SOLVER.LR_UPDATE", "cycle"), schedule)
    cycles = [rates[i : i + 60] for i in range(0, len(rates), 60)]
    assert all(len(set(cycle)) == 1 for cycle in cycles)
    got = [cycles[i][0] for i in (0, 1, 2, 19, 75)]
    assert got == pytest.approx([0.05, 1.0, 0.99988, 0.964, 0.505], abs=5e-4)


def test_rates_grow_with_the_batch_of_the_task(make_cfg: MakeCfg, caplog: pytest.LogCaptureFixture) -> None:
    schedule = PhaseSchedule([CLS, Phase("alpha", "loc", ("backbone",))], [2, 3], 4)
    plain = _rates(make_cfg("SCHEDULE.BATCH_SIZE.LOC", "8"), schedule)
    assert not caplog.text
    with caplog.at_level(logging.INFO, "fx_d2.engine.optimizer"):
        scaled = _rates(make_cfg("SCHEDULE.BATCH_SIZE.LOC", "8", "SOLVER.REFERENCE_BATCH", "16"), schedule)
    assert [b / a for a, b in zip(plain, scaled, strict=True)] == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.5] * 4)
    lines = [record.getMessage() for record in caplog.records]
    texts = ("cls: batch size 4, learning rates scaled by 0.25", "loc: batch size 8, learning rates scaled by 0.5")
    assert lines == list(texts)


@pytest.mark.parametrize(("key", "value"), [("LR_UPDATE", "epoch"), ("REFERENCE_BATCH", "-1")])
def test_rates_that_make_no_sense(make_cfg: MakeCfg, key: str, value: str) -> None:
    with pytest.raises(FXError, match=f"SOLVER.{key} is .*{value}"):
        _rates(make_cfg(f"SOLVER.{key}", value), PhaseSchedule([CLS], [2], 1))
