"""The C++ way against torch's operators. Skipped where nothing can compile it."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from fx_d2.layers import deformable_cpu
from fx_d2.layers.deformable_attention import DeformableAttention, use_sampler
from fx_d2.layers.deformable_cpu import library_digest, sample_and_sum_cpu
from fx_d2.layers.deformable_op import Sampler
from fx_d2.structures import FXError
from tests.layers.sampler_cases import CASES, assert_equal, both, draw


@pytest.fixture(autouse=True, scope="module")
def library() -> str:
    """The library, compiled once a machine."""
    try:
        return library_digest()
    except FXError as error:
        pytest.skip(f"no C++ library here: {error}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_case(case: Callable[[Sampler], None]) -> None:
    case(sample_and_sum_cpu)


def test_the_digest_is_eight_digits(library: str) -> None:
    assert re.fullmatch("[0-9a-f]{8}", library)


def test_numbers_of_other_types_are_refused() -> None:
    """The library reads memory as what it is told."""
    value, locations, weights = (x.detach() for x in draw([(3, 4)]))
    for wrong in ((value.float(), locations, weights), (value, locations.float(), weights.float())):
        with pytest.raises(ValueError, match="float32"):
            sample_and_sum_cpu(wrong[0], [(3, 4)], *wrong[1:])


def test_size_of_the_model() -> None:
    """Maps, heads and channels of the model on images of 224 pixels."""
    shapes = [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert_equal(sample_and_sum_cpu, draw(shapes, queries=100, heads=8, dim=32, points=4, dtype=torch.float32), shapes)


def test_threads_do_not_change_a_bit() -> None:
    shapes = [(9, 7), (5, 4)]
    inputs = draw(shapes, queries=50, heads=3, dim=32, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(both(sample_and_sum_cpu, inputs, shapes)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_threads_are_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is told their number at each call; in the worker of a loader it is one."""
    told, real = [], deformable_cpu._library()[0]

    def forward(*args: Any) -> None:
        told.append(args[-1].value)
        real.fx_deformable_forward_float64(*args)

    library = SimpleNamespace(fx_deformable_forward_float64=forward)
    monkeypatch.setattr(deformable_cpu, "_library", lambda: (library, ""))
    shapes = [(3, 4)]
    value, place, weights = (x.detach() for x in draw(shapes))
    before = torch.get_num_threads()
    try:
        for threads in (3, 1):
            torch.set_num_threads(threads)
            sample_and_sum_cpu(value, shapes, place, weights)
    finally:
        torch.set_num_threads(before)
    assert told == [3, 1]


FORKED = """
import os, torch
from fx_d2.layers.deformable_cpu import sample_and_sum_cpu
from tests.layers.sampler_cases import draw
torch.set_num_threads(2)
value, place, weights = (x.detach() for x in draw([(9, 7)], queries=50))
want = sample_and_sum_cpu(value, [(9, 7)], place, weights)
child = os.fork()
if not child:
    os._exit(not torch.equal(sample_and_sum_cpu(value, [(9, 7)], place, weights), want))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_process_runs_it_with_threads() -> None:
    """With OpenMP, whose threads a child does not inherit, it would wait for ever."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", FORKED], env=env, check=True, timeout=120)


def test_torch_knows_the_operator() -> None:
    """Schema, results without memory, and gradients, as torch's own check wants them."""
    inputs = [x.detach().requires_grad_() for x in draw([(3, 4), (2, 1)])]
    arguments = (inputs[0], [3, 4, 2, 1], *inputs[1:])
    torch.library.opcheck(torch.ops.fx_d2.deformable_cpu.default, arguments)


def layer(sampler: str) -> DeformableAttention:
    torch.manual_seed(0)
    made = DeformableAttention(dim=8, heads=2, levels=2, points=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return use_sampler(made, sampler, "cpu")


def inputs_of_layer() -> tuple[Any, ...]:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8), torch.rand(2, 3, 2, 2), torch.randn(2, 14, 8), ((3, 4), (2, 1))


def test_layer_compiles_into_one_graph() -> None:
    """torch.compile; without a code generator, whose own tests are not ours."""
    made = layer("cpp")
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*inputs_of_layer()), made(*inputs_of_layer()), atol=1e-6)


def test_exported_layer_needs_no_library() -> None:
    program = torch.export.export(layer("cpp"), inputs_of_layer())
    graphs = (part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule))
    names = {str(node.target) for graph in graphs for node in graph.nodes}
    assert any("grid_sampler" in name for name in names) and not any("fx_d2" in name for name in names)


def test_layer_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mine, want = (layer(name)(*inputs_of_layer()) for name in ("cpp", "torch"))
    assert mine.dtype == want.dtype == torch.bfloat16
    assert torch.allclose(mine, want, rtol=0.02, atol=0.02)


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


WAYS = {
    "cpp": ("fx_d2.deformable_cpu.default", "fx_d2.deformable_cpu_backward.default"),
    "torch": ("aten.grid_sampler_2d.default", "aten.grid_sampler_2d_backward.default"),
}
"""The operators that compute the samples, forward and backward."""


def test_model_computes_as_its_config_says(tiny_cfg: CfgNode, make_batch: Callable[..., list[dict[str, Any]]]) -> None:
    """In a training step only the operators of the way asked for run; losses and gradients of both ways agree."""
    found = {}
    for sampler in WAYS:
        tiny_cfg.MODEL.LOC.SAMPLER = sampler
        torch.manual_seed(0)
        model = build_model(tiny_cfg).train()
        layers = sum(isinstance(m, DeformableAttention) for m in model.loc_encoder.modules())
        layers += sum(isinstance(m, DeformableAttention) for m in next(iter(model.loc_decoders.values())).modules())
        torch.manual_seed(1)
        with Calls() as calls:
            losses = model(make_batch("loc"))
            sum(losses.values()).backward()
        for way, operators in WAYS.items():
            for name in operators:
                assert calls.count[name] >= layers if way == sampler else not calls.count[name], (sampler, name)
        found[sampler] = losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    (mine, my_grads), (want, grads) = found.values()
    assert mine.keys() == want.keys() and my_grads.keys() == grads.keys()
    for name, value in want.items():
        assert mine[name].item() == pytest.approx(value.item(), rel=1e-4), name
    for name, grad in grads.items():
        scale = grad.abs().max()
        assert (my_grads[name] - grad).abs().max() <= 1e-3 * scale + 1e-6, name
    assert any(not torch.equal(my_grads[name], grads[name]) for name in grads), "the same operators ran"
