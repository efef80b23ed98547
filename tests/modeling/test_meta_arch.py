"""The whole model in training: what learns in each phase, what is frozen, which losses it gives."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.config import PAPER_STRATEGY
from fx_d2.engine.guards import check_components
from fx_d2.engine.lock import apply_phase
from fx_d2.modeling import EMATeacher, FoundationX
from fx_d2.modeling import meta_arch as module
from fx_d2.structures import COMPONENTS, TASK_COMPONENTS, FXError, Phase

Make = Any  # the fixture make_batch

PAPER = [Phase("tiny", row["task"], tuple(row["train"])) for row in PAPER_STRATEGY]
OTHER = [
    Phase("tiny", "cls", ("cls_heads",)),  # Foundation X+ locks classification too
    Phase("tiny", "cls", ("backbone",)),
    Phase("tiny", "loc", ("loc_encoder",)),
    Phase("tiny", "loc", ("backbone", "loc_decoders")),
    Phase("tiny", "seg", ("seg_decoder", "seg_heads")),
]
TERMS = {
    "cls": {"bce"},
    "loc": {f"{part}{term}" for part in ("", "dn_", "enc_") for term in ("class", "l1", "giou")},
    "seg": {"dice"},
}


def name_of(phase: Phase) -> str:
    return f"{phase.task}-{'+'.join(phase.trainable)}"


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def component_of(name: str) -> str:
    return name.split(".", 1)[0]


def gradients(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None}


def check_gradients(model: FoundationX, phase: Phase) -> None:
    """Exactly the parameters that ask for a gradient have one: DDP needs no search for unused ones."""
    assert gradients(model) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {component_of(name) for name in gradients(model)} == set(phase.trainable)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("boxes", [(2, 0), (0, 0)], ids=["boxes", "no_box"])
@pytest.mark.parametrize("phase", PAPER + OTHER, ids=name_of)
def test_exactly_what_a_phase_trains_gets_a_gradient(
    model: FoundationX, teacher: EMATeacher, make_batch: Make, phase: Phase, boxes: tuple[int, int]
) -> None:
    apply_phase(model, phase)
    batch = make_batch(phase.task, boxes)
    losses = model(batch, teacher.guide(batch, phase))
    total(losses).backward()
    check_gradients(model, phase)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"TIE_BOX_HEADS": False},
        {"DN_NUMBER": 0},
        {"DEC_LAYERS": 1, "TIE_BOX_HEADS": False},
        {"STAGES": [3]},
        {"ENC": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("boxes", [(1, 3), (0, 0)], ids=["boxes", "no_box"])
def test_no_option_of_localization_leaves_a_parameter_behind(
    tiny_cfg: CfgNode, make_batch: Make, changes: dict[str, Any], boxes: tuple[int, int]
) -> None:
    for key, value in changes.items():
        (tiny_cfg.MODEL.LOC.LOSS if key == "ENC" else tiny_cfg.MODEL.LOC)[key] = value
    model = build_model(tiny_cfg)
    for phase in PAPER[1:3]:
        model.zero_grad(set_to_none=True)
        apply_phase(model, phase)
        total(model(make_batch("loc", boxes))).backward()
        check_gradients(model, phase)


@pytest.mark.parametrize("phase", PAPER, ids=name_of)
def test_bfloat16_is_finite_in_every_phase(
    model: FoundationX, teacher: EMATeacher, make_batch: Make, phase: Phase
) -> None:
    apply_phase(model, phase)
    batch = make_batch(phase.task, (3, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch, teacher.guide(batch, phase))
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    total(losses).backward()
    check_gradients(model, phase)


@pytest.mark.parametrize("phase", PAPER, ids=name_of)
def test_loss_names(model: FoundationX, teacher: EMATeacher, make_batch: Make, phase: Phase) -> None:
    apply_phase(model, phase)
    batch = make_batch(phase.task)
    shared = [c for c in ("backbone", "loc_encoder", "seg_decoder") if c in phase.trainable]
    guide = teacher.guide(batch, phase)
    assert list(guide) == shared and not any(x.requires_grad for x in guide.values())
    terms = TERMS[phase.task] | {f"consistency_{c}" for c in shared}
    assert set(model(batch, guide)) == {f"loss_{phase.task}_{term}" for term in terms}


class Watch:
    """Which components ran, whether they were in training mode, and whether their output had a graph."""

    def __init__(self, model: FoundationX, phase: Phase) -> None:
        self.seen: dict[str, tuple[bool, bool]] = {}
        for component, modules in model.modules_of(phase.dataset, phase.task).items():
            # The first of the backbone's modules is its trunk; the others are the task's norms.
            modules[0].register_forward_hook(lambda m, _, out, c=component: self._note(c, m, out))

    def _note(self, component: str, part: nn.Module, out: Any) -> None:
        training = {m.training for m in part.modules()}
        assert len(training) == 1, f"{component} is half frozen"
        self.seen[component] = (training.pop(), any(t.requires_grad for t in tensors(out)))


def tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, list | tuple):
        for x in out:
            yield from tensors(x)
    elif hasattr(out, "__dict__"):
        yield from tensors(list(vars(out).values()))


@pytest.mark.parametrize("phase", PAPER + OTHER, ids=name_of)
def test_frozen_parts_run_in_evaluation_and_without_a_graph(model: FoundationX, make_batch: Make, phase: Phase) -> None:
    apply_phase(model, phase)
    watch = Watch(model, phase)
    model(make_batch(phase.task))
    parts = TASK_COMPONENTS[phase.task]
    learns = [c in phase.trainable for c in parts]
    want = {c: (learns[i], any(learns[: i + 1])) for i, c in enumerate(parts)}
    assert watch.seen == want


def test_locked_parts_keep_their_running_statistics(model: FoundationX, make_batch: Make) -> None:
    for phase, moves in ((PAPER[3], False), (PAPER[4], True)):
        before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        apply_phase(model, phase)
        model(make_batch("seg"))
        assert before and any(not torch.equal(model.state_dict()[k], v) for k, v in before.items()) == moves


@pytest.mark.parametrize("phase", [PAPER[0], PAPER[2], PAPER[4]], ids=name_of)
def test_consistency_trains_the_student_s_shared_parts_only(
    model: FoundationX, teacher: EMATeacher, make_batch: Make, phase: Phase
) -> None:
    apply_phase(model, phase)
    batch = make_batch(phase.task)
    losses = model(batch, teacher.guide(batch, phase))
    for component in (c for c in phase.trainable if f"loss_{phase.task}_consistency_{c}" in losses):
        model.zero_grad(set_to_none=True)
        losses[f"loss_{phase.task}_consistency_{component}"].backward(retain_graph=True)
        moved = {component_of(n) for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert moved == {"backbone", component}
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("phase", [PAPER[0], PAPER[2], PAPER[4]], ids=name_of)
def test_total_is_a_weighted_sum_of_task_and_mean_consistency(
    model: FoundationX, teacher: EMATeacher, make_batch: Make, phase: Phase, share: float
) -> None:
    apply_phase(model, phase)
    model.eval()
    model.training = True  # without drop path and dropout
    teacher.model.consistency = share
    batch = make_batch(phase.task)
    guide = teacher.guide(batch, phase)
    results = []
    for weight in (0.0, share):
        model.consistency = weight
        torch.manual_seed(5)
        results.append(model(batch, guide if weight else {}))
    plain, mixed = results
    for key, value in plain.items():
        assert mixed[key].item() == pytest.approx((1 - share) * value.item(), rel=1e-5)
    ours = model.shared_outputs(batch, phase.task, list(guide), view="image")
    for component, target in guide.items():
        distance = F.mse_loss(ours[component], target).item()
        key = f"loss_{phase.task}_consistency_{component}"
        assert distance > 0 and mixed[key].item() == pytest.approx(share * distance / len(guide), rel=1e-4)


def test_memory_is_compared_position_by_position(model: FoundationX, teacher: EMATeacher, make_batch: Make) -> None:
    """Equal weights and views give zero; the teacher's tokens in another order do not."""
    phase = PAPER[2]
    apply_phase(model, phase)
    model.eval()
    model.training = True
    teacher.model.load_state_dict(model.state_dict())
    batch = [{k: v for k, v in x.items() if k != "teacher_image"} for x in make_batch("loc")]
    guide = teacher.guide(batch, phase)
    key = "loss_loc_consistency_loc_encoder"
    assert model(batch, guide)[key].item() == pytest.approx(0, abs=1e-10)
    assert model(batch, guide | {"loc_encoder": guide["loc_encoder"].flip(1)})[key].item() > 1e-3


def test_logits_of_masks_are_resized_in_float32_at_least(model: FoundationX) -> None:
    """The gradient of a place is a sum over many pixels."""
    for given, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert model._upsample(torch.ones(1, 1, 2, 2, dtype=given), (4, 4)).dtype == wanted
    # Corners are not aligned: a pixel is an area.
    assert model._upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist() == [[[[0, 0.25, 0.75, 1]]]]


def test_the_order_of_losses_does_not_depend_on_hashing(model: FoundationX, make_batch: Make) -> None:
    """Float sums depend on the order; sets of strings change theirs from process to process."""
    for wanted in (["backbone", "loc_encoder"], ["loc_encoder", "backbone"]):
        assert list(model.shared_outputs(make_batch("loc"), "loc", wanted, view="image")) == wanted


def test_a_pass_does_not_run_other_tasks_parts(model: FoundationX, make_batch: Make) -> None:
    for phase in PAPER:
        apply_phase(model, phase)
        ran: set[str] = set()
        handles = [
            m.register_forward_pre_hook(lambda _, __, name=name, ran=ran: ran.add(component_of(name)))
            for name, m in model.named_modules()
            if name
        ]
        model(make_batch(phase.task))
        for handle in handles:
            handle.remove()
        assert ran == set(TASK_COMPONENTS[phase.task])


def test_batches_are_of_one_dataset_and_task(model: FoundationX, make_batch: Make) -> None:
    with pytest.raises(ValueError, match=r"one task, not \['cls', 'seg'\]"):
        model(make_batch("cls") + make_batch("seg"))
    with pytest.raises(ValueError, match="one dataset, not"):
        model(make_batch("cls") + make_batch("cls", dataset="tiny_softmax"))


def test_labels_reach_the_right_logit_and_masks_the_right_channel(model: FoundationX, make_batch: Make) -> None:
    apply_phase(model, Phase("tiny", "cls", ("cls_heads",)))
    model(make_batch("cls"))["loss_cls_bce"].backward()
    head = model.cls_heads["tiny"]
    assert head.bias.grad[0] < 0 < head.bias.grad[1] and head.bias.grad[2] == 0  # 1, 0 and unknown
    apply_phase(model, Phase("tiny", "seg", ("seg_heads",)))
    model(make_batch("seg"))["loss_seg_dice"].backward()
    grad = model.seg_heads["tiny"].bias.grad
    assert grad[0] != 0 and grad[1] != 0 and grad[2] == 0  # the third channel is unknown
    assert model.cls_heads["tiny_softmax"].weight.grad is None


def test_components_and_heads_follow_from_the_rows(model: FoundationX, tiny_cfg: CfgNode) -> None:
    assert [name for name, _ in model.named_children()] == list(COMPONENTS)
    check_components(model)
    assert set(model.cls_heads) == {"tiny", "tiny_softmax"} and set(model.loc_decoders) == {"tiny"}
    assert model.cls_heads["tiny"].out_features == 3 and model.seg_heads["tiny"].out_channels == 3
    assert model.loc_decoders["tiny"].num_classes == 2
    tiny_cfg.DATASETS.TRAIN = ("tiny_softmax_train",)
    small = build_model(tiny_cfg)
    assert small.loc_encoder is None and small.seg_decoder is None
    assert {component_of(name) for name, _ in small.named_parameters()} == {"backbone", "cls_heads"}
    assert set(small.eval().modules_of("tiny_softmax", "cls")) == {"backbone", "cls_heads"}


def test_a_child_the_lock_table_cannot_name_is_refused(model: FoundationX) -> None:
    model.neck = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"children \['neck'\] are not among"):
        check_components(model)


def test_pixels_are_normalised_once_and_saved_nowhere(model: FoundationX, make_batch: Make) -> None:
    seen = {}
    model.backbone.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    batch = make_batch("cls", (1,))
    model.eval()(batch)
    want = (batch[0]["image"].float() - 0.5056 * 255) / (0.252 * 255)
    assert torch.allclose(seen["x"][0], want) and not any("pixel" in key for key in model.state_dict())


@pytest.mark.parametrize(("name", "per_class"), [("class", True), ("batch", False)])
def test_dice_follows_the_config(tiny_cfg: CfgNode, make_batch: Make, name: str, per_class: bool) -> None:
    tiny_cfg.MODEL.SEG.DICE = name
    model = build_model(tiny_cfg)
    with mock.patch.object(module, "dice_loss", return_value=torch.zeros(())) as dice:
        model(make_batch("seg"))
    assert dice.call_args.args[-1] is per_class
    assert dice.call_args.args[0].shape == dice.call_args.args[1].shape == (2, 3, 64, 64)


def test_a_wrong_dice_is_refused(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.SEG.DICE = "image"
    with pytest.raises(FXError, match="MODEL.SEG.DICE is 'image': choose batch or class"):
        build_model(tiny_cfg)


@pytest.mark.parametrize(("enabled", "weight", "want"), [(True, 0.3, 0.3), (False, 0.3, 0.0), (True, 0.0, 0.0)])
def test_consistency_follows_the_config(tiny_cfg: CfgNode, enabled: bool, weight: float, want: float) -> None:
    tiny_cfg.MODEL.TEACHER.ENABLED, tiny_cfg.MODEL.TEACHER.CONSISTENCY = enabled, weight
    model = build_model(tiny_cfg)
    assert model.consistency == want
    assert model.shared_components(PAPER[2]) == (["backbone", "loc_encoder"] if want else [])
