"""The C++ way against torch's operators. Skipped where nothing can compile it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

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


def test_losses_of_a_model(tiny_cfg: CfgNode, make_batch: Callable[..., list[dict[str, Any]]]) -> None:
    """A training step of localization: losses and gradients of both ways."""
    found = []
    for sampler in ("cpp", "torch"):
        tiny_cfg.MODEL.LOC.SAMPLER = sampler
        torch.manual_seed(0)
        model = build_model(tiny_cfg).train()
        kinds = {m.sampler for m in model.modules() if isinstance(m, DeformableAttention)}
        assert kinds == {sampler}
        torch.manual_seed(1)
        losses = model(make_batch("loc"))
        sum(losses.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((losses, grads))
    (mine, my_grads), (want, grads) = found
    assert mine.keys() == want.keys() and my_grads.keys() == grads.keys()
    for name, value in want.items():
        assert mine[name].item() == pytest.approx(value.item(), rel=1e-4), name
    for name, grad in grads.items():
        scale = grad.abs().max()
        assert (my_grads[name] - grad).abs().max() <= 1e-3 * scale + 1e-6, name
