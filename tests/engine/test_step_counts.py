"""What a training step costs, in counts that no busy machine disturbs: launches, waits, memory, arithmetic.

The bounds are a little above what was measured when they were set. A change that lowers a count should lower its bound.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fx_d2.config import add_fx_config
from fx_d2.engine import FXTrainer
from fx_d2.engine.guards import checkpoint_bytes
from fx_d2.engine.lock import apply_phase
from fx_d2.layers.deformable_attention import choose_sampler, use_sampler
from fx_d2.losses import Match
from fx_d2.modeling import FoundationX, localization
from fx_d2.structures import TASK_COMPONENTS, DatasetSpec, FXError, Phase

MB = 10**6


class Launches(TorchDispatchMode):
    """Counts the operators that make a device work, forward and backward: no views, no allocations."""

    NO_WORK = ("aten._unsafe_view", "aten.promote_types", "aten.empty", "aten.new_empty", "aten._reshape_alias")
    WAITING = ("aten.nonzero", "aten._local_scalar_dense", "aten.masked_select", "aten.unique", "aten._unique")

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waits = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        if not view and not name.startswith(self.NO_WORK):
            self.count[name] += 1
        if name.startswith("aten.index"):  # a mask becomes indices, whose number the host must know
            indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
            self.waits[name] += any(x is not None and x.dtype == torch.bool for x in indices)
        self.waits[name] += name.startswith(self.WAITING)
        return func(*args, **(kwargs or {}))

    def hidden_waits(self) -> dict[str, int]:
        """Waits by operator, without the ways of a scalar to the host, which `Waits` sees too."""
        return {name: n for name, n in self.waits.items() if n and "_local_scalar_dense" not in name}


class Waits(TorchFunctionMode):
    """Counts where Python would wait for a GPU, if the tensors were there: the CPU alone would not tell.

    Values that go to the host, and those that come from it in memory that is not pinned: numbers as tensors on a
    device, an index given as a list, `to(device)` without `non_blocking`. What is on the host on
    purpose counts as well, so the count is never too low.
    """

    TO_HOST = ("cpu", "item", "tolist", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        self.count[name] += name in self.TO_HOST or name == "new_tensor"
        self.count[name] += name in ("tensor", "as_tensor") and kwargs.get("device") is not None
        if name == "to":
            moves = isinstance(args[1] if len(args) > 1 else kwargs.get("device"), torch.device | str)
            # Torch's own are between tensors of one device.
            own = sys._getframe(1).f_globals["__name__"].startswith("torch.")
            self.count[name] += moves and not own and not kwargs.get("non_blocking", False)
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.count[name] += any(isinstance(x, list) for x in index)
        return func(*args, **kwargs)


@contextmanager
def counted() -> Iterator[tuple[Launches, Waits]]:
    """Both counters."""
    with Launches() as launches, Waits() as waits:
        yield launches, waits


@pytest.mark.parametrize(
    ("cause", "want"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: float(x.max()) + int(x.min()), 2),
        (lambda x: x.cpu().numpy(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x[[1, 0]], 1),
        (lambda x: x.new_tensor([1.0]), 1),
        (lambda x: torch.tensor(1.0, device=x.device), 1),
        (lambda x: x.to(x.device), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.to(x.device, non_blocking=True).to(torch.float64), 0),
        (lambda x: x[torch.tensor([1, 0])] + x[1:].sum() + torch.arange(1), 0),
    ],
)
def test_waits_are_found(cause: Callable[[Tensor], object], want: int) -> None:
    with counted() as (launches, waits):
        cause(torch.ones(2))
    assert waits.count.total() + sum(launches.hidden_waits().values()) == want


def test_launches_are_found() -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    with counted() as (launches, _):
        out = (weight.T @ weight.view(3, 2)).sum()
        out.backward()
    # A product and a sum; back: a one, two products, and their sum.
    assert launches.count["aten.mm.default"] == 3 and launches.count.total() == 6, launches.count


MakeCfg = Callable[..., CfgNode]

# Swin-B and the default branches in depth, narrow: the number of operators does not depend on width.
NARROW = """
MODEL.TIMM.NAME swin_base_patch4_window7_224|MODEL.TIMM.KWARGS.depths [2, 2, 18, 2]
MODEL.TIMM.KWARGS.num_heads [1, 2, 4, 8]|MODEL.TIMM.IN_CHANS 3|MODEL.LOC.NUM_HEADS 8
MODEL.LOC.ENC_LAYERS 6|MODEL.LOC.DEC_LAYERS 6|MODEL.LOC.NUM_QUERIES 900
MODEL.LOC.DN_NUMBER 100|INPUT.SIZE [224, 224]|DATASETS.TRAIN ["alpha_train"]
SCHEDULE.BATCH_SIZE.LOC 2|SCHEDULE.ITERS_PER_PASS 2
"""
RELEASED = """[{"task": "loc", "share": 1.0, "train": ["backbone", "loc_encoder", "loc_decoders"]}]"""


def counts_of_steps(cfg: CfgNode) -> dict[tuple[str, bool], tuple[Launches, Waits]]:
    """Counts of the second step of each pass of the first cycle, by (task, released): from a batch to new weights."""
    trainer = FXTrainer(cfg)
    run_step, seen = trainer.run_step, {}

    def counting() -> None:
        phase = trainer.schedule.at(trainer.iter).phase
        trainer._batches = chain([next(trainer._batches)], trainer._batches)  # read by a worker, as it were
        with counted() as both:
            run_step()
        seen[phase.task, "backbone" in phase.trainable] = both  # the first step also makes the optimizer's state

    trainer.run_step = counting  # type: ignore[method-assign]
    trainer.train()
    return seen


def require(sampler: str) -> None:
    """Skip where a way to compute deformable attention cannot be had."""
    try:
        choose_sampler(sampler, "cpu")
    except FXError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("sampler", "most"), [("torch", 4150), ("cpp", 3450)])
def test_launches_and_waits_of_a_released_localization_step(make_cfg: MakeCfg, sampler: str, most: int) -> None:
    """The public implementation: 7,916 launches and 94 waits before the optimizer."""
    require(sampler)
    options = (*words(NARROW), "MODEL.TEACHER.ENABLED", "False", "SCHEDULE.STRATEGY", RELEASED)
    options = (*options, "MODEL.LOC.SAMPLER", sampler)
    ((launches, waits),) = counts_of_steps(make_cfg(*options)).values()
    assert launches.count["aten._fused_adamw_.default"] > 0 and launches.count["aten.convolution_backward.default"] > 0
    assert launches.count.total() <= most, launches.count.most_common(20)
    assert waits.count.total() <= 4, +waits.count
    assert launches.hidden_waits() == {}


@pytest.mark.parametrize(("sampler", "locked", "released"), [("torch", 2550, 4850), ("cpp", 2050, 4000)])
def test_launches_and_waits_of_each_phase_with_a_teacher(
    make_cfg: MakeCfg, sampler: str, locked: int, released: int
) -> None:
    """A released phase pays the teacher's forward pass without the decoder, a locked one nothing; none waits for it."""
    require(sampler)
    bounds = {("cls", True): 2080, ("seg", False): 530, ("seg", True): 2270}
    bounds |= {("loc", False): locked, ("loc", True): released}
    options = ("SCHEDULE.BATCH_SIZE.SEG", "2", "SCHEDULE.BATCH_SIZE.CLS", "2", "MODEL.LOC.SAMPLER", sampler)
    seen = counts_of_steps(make_cfg(*words(NARROW), *options))
    found = {key: (launches.count.total(), waits.count.total()) for key, (launches, waits) in seen.items()}
    assert found.keys() == bounds.keys() and all(launches <= bounds[key] for key, (launches, _) in found.items()), found
    assert all(waits <= 4 for _, waits in found.values()), found
    assert all(launches.hidden_waits() == {} for launches, _ in seen.values())
    # Gradients are rewritten where they are clipped, and nowhere else.
    scaled = {key for key, (launches, _) in seen.items() if launches.count["aten._foreach_mul_.Tensor"]}
    assert scaled == {("loc", False), ("loc", True)}


def words(lines: str) -> list[str]:
    """KEY VALUE pairs, one a line or between bars."""
    return [word for line in lines.strip().replace("\n", "|").split("|") for word in line.split(" ", 1)]


SPEC = DatasetSpec(
    name="base",
    title="Base",
    cls_classes=tuple(f"finding {i}" for i in range(14)),
    loc_classes=tuple(f"finding {i}" for i in range(14)),
    seg_classes=("left lung", "right lung", "heart"),
)
BATCH, BOXES, SIDE = 2, 3, 224


@pytest.fixture(scope="module")
def fake() -> FakeTensorMode:
    """Tensors with shapes and types but without memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def default_cfg() -> CfgNode:
    """The defaults."""
    cfg = get_cfg()
    add_fx_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def base(fake: FakeTensorMode) -> FoundationX:
    """The default model, at its full size."""
    cfg = default_cfg()
    cfg.MODEL.TEACHER.ENABLED = False
    with torch.device("meta"):
        model = FoundationX(cfg, specs=[SPEC])
    with fake:
        return model.to_empty(device="cpu")


def _samples(task: str) -> list[dict[str, Any]]:
    sample = {"dataset": "base", "task": task, "image": torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)}
    if task == "cls":
        sample["labels"] = torch.zeros(len(SPEC.cls_classes))
    elif task == "loc":
        boxes = Boxes(torch.tensor([[10.0, 10.0, 90.0, 120.0]]).repeat(BOXES, 1))
        sample["instances"] = Instances((SIDE, SIDE), gt_boxes=boxes, gt_classes=torch.zeros(BOXES, dtype=torch.int64))
    else:
        classes = len(SPEC.seg_classes)
        sample |= {"masks": torch.zeros(classes, SIDE, SIDE, dtype=torch.bool)}
        sample |= {"mask_known": torch.ones(classes, dtype=torch.bool)}
        sample |= {"mask_valid": torch.ones(SIDE, SIDE, dtype=torch.bool)}
    return [dict(sample) for _ in range(BATCH)]


def _first_come(logits: Tensor, boxes: Tensor, targets: Any, weights: Any) -> Match:
    """A matching of the right shape: the true one depends on values, which fake tensors do not have."""
    total = len(logits) * targets.total
    return Match(torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.int64))


class Saved:
    """Bytes that autograd keeps for the backward pass, beside the model's own tensors; each storage once."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, Tensor] = {}

    def __enter__(self) -> Saved:
        self._hooks = saved_tensors_hooks(self._keep, lambda x: x)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if key not in self._own:
            self._kept[key] = x
        return x

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(x.untyped_storage().nbytes() for x in self._kept.values())


def _phase(task: str, locked: bool) -> Phase:
    return Phase("base", task, TASK_COMPONENTS[task][-1:] if locked else TASK_COMPONENTS[task])


@pytest.mark.parametrize(
    ("task", "locked", "sampler", "megabytes", "gigaflops"),
    [
        ("cls", False, "torch", 230, 93),
        ("loc", False, "torch", 610, 183),
        ("loc", True, "torch", 162, 88),
        ("loc", False, "cpp", 445, 183),
        ("loc", True, "cpp", 106, 88),
        ("seg", False, "torch", 246, 114),
        ("seg", True, "torch", 3.1, 38),
    ],
)
def test_memory_and_arithmetic_of_an_image(
    base: FoundationX,
    fake: FakeTensorMode,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    locked: bool,
    sampler: str,
    megabytes: float,
    gigaflops: float,
) -> None:
    """Saved for the backward pass (public implementation of the released localization step: 979 MB), and FLOPs."""
    require(sampler)
    use_sampler(base, sampler, "cpu")
    monkeypatch.setattr(localization, "match_queries", _first_come)
    apply_phase(base, _phase(task, locked))
    saved = Saved(base)
    with fake, FlopCounterMode(display=False) as flops:
        with saved:
            losses = base(_samples(task))
        torch.stack(list(losses.values())).sum().backward()
    base.zero_grad(set_to_none=True)
    found = (saved.bytes / BATCH / MB, flops.get_total_flops() / BATCH / 1e9)
    assert 0.5 * megabytes < found[0] <= megabytes and 0.5 * gigaflops < found[1] <= gigaflops, found


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_frozen_parts_keep_nothing(base: FoundationX, fake: FakeTensorMode, task: str) -> None:
    """In a locked pass neither the trunk nor the shared part after it leaves anything for the backward pass."""
    apply_phase(base, _phase(task, locked=True))
    saved = Saved(base)
    with fake, saved:
        features = base.backbone(torch.zeros(1, 1, SIDE, SIDE))
        if task == "cls":
            out = base.backbone.pooled(features)
        elif task == "loc":
            out = base.loc_encoder(base.backbone.levels(features), None).tokens
        else:
            out = base.seg_decoder(list(features.values()))
    assert not out.requires_grad and saved.bytes == 0


def test_bytes_of_a_checkpoint(base: FoundationX) -> None:
    """Student, teacher and AdamW's moments of a model of one dataset with all three tasks."""
    assert checkpoint_bytes(default_cfg(), base, base) / MB <= 2060
