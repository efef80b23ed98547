"""Where the tensors of a run on a GPU lie, found out without one.

The tensors of a pretended GPU compute on the CPU and say that they lie on cuda:0. An operator that mixes them with
tensors of the CPU fails as it would on a real one, and so does what takes their numbers to numpy without asking.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from fx_d2.data import build_test_loader
from fx_d2.engine import FXTrainer
from fx_d2.evaluation import evaluate_model
from fx_d2.predictor import FXPredictor
from fx_d2.structures import specs_of

MakeCfg = Callable[..., CfgNode]

GPU = torch.device("cuda", 0)


class OnGPU(Tensor):
    """A tensor of the pretended GPU; `held` is the one that computes."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[OnGPU], held: Tensor) -> OnGPU:
        # Autograd's engine, which asks the driver about tensors on cuda, sees one of torch's devices without memory.
        x = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="meta", requires_grad=held.requires_grad,
        )  # fmt: skip
        x.held = held
        return x

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of pretended_gpu()")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGPU({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # a file holds numbers

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor on cuda:0 cannot be converted to numpy: call cpu() first")

    __array__ = numpy

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype).to(GPU)


class _Placing(TorchDispatchMode):
    """Computes, and places the results."""

    COPIES = ("aten.copy_", "aten._foreach_copy_", "aten._to_copy")
    INDEXED = ("aten.index.", "aten.index_put", "aten._index_put_impl_", "aten._unsafe_index")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = any(isinstance(x, OnGPU) for x in tree_leaves((args, kwargs)))
        # Indices that lie on the CPU may point into a tensor of a GPU.
        bound = (args[0], args[2:]) if str(func).startswith(self.INDEXED) and isinstance(args[0], OnGPU) else args
        apart = [
            tuple(x.shape)
            for x in tree_leaves((bound, kwargs))
            if isinstance(x, Tensor) and not isinstance(x, OnGPU) and x.dim()  # a number may lie anywhere
        ]
        if there and apart and not str(func).startswith(self.COPIES):
            raise RuntimeError(f"{func}: tensors on cuda:0 and on the cpu, of shapes {apart}")
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type != "cpu"
            kwargs["device"] = "cpu"
        out = func(*_held(args), **_held(kwargs))
        if not there or not any(isinstance(x, Tensor) for x in tree_leaves(out)):
            return out
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, OnGPU, out))


class _Making(TorchFunctionMode):
    """`torch.tensor` asks the driver before any mode is asked."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        place = kwargs.pop("device", None) if func in (torch.tensor, torch.as_tensor) else None
        out = func(*args, **kwargs)
        return out if place is None else out.to(place)


def _held(tree: Any) -> Any:
    return tree_map_only(OnGPU, lambda x: x.held, tree)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, the device "cuda" is there; without autocast, which knows only real ones."""
    torch._C._ensureCUDADeviceGuardSet()  # what torch's own fake tensors need for a device that is not there
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    nothing = mock.patch.multiple(
        torch.cuda, _lazy_init=lambda: None, is_available=lambda: True, max_memory_allocated=lambda device: 0
    )
    try:
        with nothing, mock.patch.object(Tensor, "pin_memory", lambda self: self), _Placing(), _Making():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapping)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3, 2),
        lambda x: torch.where(x > 0, x, torch.zeros(3, 2)),
        lambda x: torch.zeros(3, 2).index_put_((torch.arange(2, device=x.device),), x[:2]),
        lambda x: x.index_put_((torch.arange(2),), torch.ones(2, 2)),
        lambda x: torch.ones(3, 2)[torch.arange(2, device=x.device)],
        lambda x: x.numpy(),
        lambda x: torch.stack([x, torch.ones(3, 2)]),
    ],
)
def test_mixed_devices_are_found(mistake: Callable[[Tensor], object]) -> None:
    with pretended_gpu(), pytest.raises((RuntimeError, TypeError), match="cuda:0"):
        mistake(torch.ones(3, 2, device="cuda"))


def test_tensors_of_the_pretended_gpu_compute() -> None:
    with pretended_gpu():
        x = torch.ones(3, 2).to("cuda")
        weight = torch.tensor([[1.0, 2.0]], device=x.device).requires_grad_()
        view = x[0]
        view += 1
        (x @ weight.T)[torch.tensor([0])].sum().backward()
        assert x.device == weight.grad.device == torch.device("cuda:0")
        assert weight.grad.cpu().tolist() == [[2.0, 2.0]] and type(weight.grad.cpu()) is Tensor


def test_a_run_on_a_gpu_keeps_to_it(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """A cycle of training, its evaluation, its end after a resume, and predictions."""
    cfg = make_cfg("SCHEDULE.ITERS_PER_PASS", "1", "SOLVER.CHECKPOINT_STEPS", "5", "SOLVER.MICRO_BATCH.LOC", "2")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    splits = cfg.DATASETS.TEST
    loaders = {name: functools.partial(build_test_loader, cfg, name) for name in splits}

    def evaluate(models: Mapping[str, nn.Module], final: bool) -> dict[str, float]:
        return evaluate_model(cfg, models, loaders, specs_of(splits), full=final, thresholds={}).metrics

    with pretended_gpu():
        trainer = FXTrainer(cfg, evaluate)
        trainer.resume_or_load(False)
        trainer.train()
        (tmp_path / "run/model_final.pth").unlink()
        again = FXTrainer(cfg, evaluate)
        again.resume_or_load(True)
        again.train()
        predictor = FXPredictor.from_checkpoint(tmp_path / "run/model_final.pth", device="cuda")
        found = predictor(str(next((Path(cfg.DATASETS.ROOT) / "alpha/images").glob("*.png"))), score_thresh=0.0)
        for model in (trainer.model, trainer.teacher, again.model, predictor.model):
            assert all(isinstance(x, OnGPU) for x in model.state_dict().values())
    assert found["alpha"].boxes is not None and found["alpha"].masks is not None
