from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import distributed, nn
from torch._dynamo import register_backend
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn.parallel import DistributedDataParallel

from fx_d2.engine import FXTrainer, apply_phase, build_cycle
from fx_d2.engine.compiling import compile_layers, repeated_blocks
from fx_d2.layers.deformable_cpu import library_digest
from fx_d2.modeling.detr.encoder import EncoderLayer, Memory, token_centres
from fx_d2.structures import FXError

MakeCfg = Callable[..., CfgNode]
MakeBatch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing compiled before or kept after, and torch's own settings."""
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit, optimize_ddp=True):
        yield
    torch.compiler.reset()


def test_a_compiled_training_is_the_training_itself(
    make_cfg: MakeCfg, make_batch: MakeBatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All passes, locked and released, with a teacher; evaluations compile nothing."""

    def evaluate(models: Mapping[str, nn.Module], last: bool) -> dict[str, float]:
        before = counters["stats"]["unique_graphs"]
        models["student"].eval()(make_batch("cls", (1, 1), dataset="alpha"))
        assert counters["stats"]["unique_graphs"] == before
        return {}

    found = []
    for backend in ("", "aot_eager"):
        folder = str(tmp_path_factory.mktemp("run"))
        cfg = make_cfg("MODEL.COMPILE", backend, "SOLVER.OPTIMIZER", "sgd", "OUTPUT_DIR", folder)
        trainer = FXTrainer(cfg, evaluate)
        trainer.resume_or_load(resume=False)
        trainer.train()
        found.append((trainer.model.state_dict(), trainer.teacher.model.state_dict()))
        assert (counters["stats"]["unique_graphs"] > 10) == bool(backend)
    for plain, compiled in zip(*found, strict=True):
        assert plain.keys() == compiled.keys()
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    assert not counters["graph_break"] and not counters["inductor"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]


def test_inductor_computes_the_same(tiny_cfg: CfgNode) -> None:
    """An encoder's layer, forward and backward, in float64."""
    try:
        library_digest()
    except FXError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model = build_model(tiny_cfg).double()
    layer = model.loc_encoder.layers[0]
    channels = [model.backbone.channels[i] for i in model.backbone.loc_stages]
    maps = [torch.rand(2, c, 16 >> i, 16 >> i, dtype=torch.float64) for i, c in enumerate(channels)]
    memory = model.loc_encoder(maps, None)
    leaves = [torch.rand_like(memory.tokens, requires_grad=True) for _ in range(2)]
    centres = token_centres(memory.shapes, memory.valid_ratios)[:, :, None].expand(-1, -1, len(memory.shapes), -1)
    results = []
    for backend in ("", "inductor"):
        compile_layers(model, backend)
        out = layer(*leaves, centres, memory)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_compiled_layer_holds_no_numbers_of_the_host() -> None:
    """They would be copied to the device each time it runs."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    layer = EncoderLayer(dim=8, heads=2, levels=2, points=2, ffn_dim=8)
    layer.compile(backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    memory = Memory(torch.rand(1, 20, 8), ((4, 4), (2, 2)), None, torch.ones(1, 2, 2))
    layer(memory.tokens, memory.tokens, torch.rand(1, 20, 2, 2), memory).sum().backward()
    assert len(graphs) == 2 and not any(list(graph.buffers()) for graph in graphs)


@pytest.fixture
def _group_of_one() -> Iterator[None]:
    """A process group, so that torch's wrapper for several processes can be had."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_group_of_one")
def test_several_processes_compile_layers_whole(tiny_cfg: CfgNode, make_batch: MakeBatch) -> None:
    """However many buckets of gradients a layer fills; torch's first bucket has one megabyte."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    tiny_cfg.MODEL.LOC.FFN_DIM = 8192
    model = build_model(tiny_cfg)
    phases = build_cycle(list(model.specs.values()), tiny_cfg.SCHEDULE.STRATEGY)
    apply_phase(model, next(phase for phase in phases if phase.task == "loc" and phase.mode == "release"))
    register_backend(backend, name="counting")
    compile_layers(model, "counting")
    losses = DistributedDataParallel(model)(make_batch("loc"))
    torch.stack(list(losses.values())).sum().backward()
    assert compiled and len(compiled) == counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("name", "number"), [("swin_tiny_patch4_window7_224", 12), ("convnext_tiny", 18), ("resnet18", 8), ("vgg11", 0)]
)
def test_blocks_of_a_trunk(name: str, number: int) -> None:
    """Each block once, none inside another."""
    trunk = timm.create_model(name, features_only=True, pretrained=False)
    blocks = list(repeated_blocks(trunk))
    inner = [part for block in blocks for part in block.modules()]
    assert len(blocks) == number and len(inner) == len(set(inner))


def test_what_is_compiled(tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, encoder layers and the segmentation decoder; where a trunk has no rows of blocks, the whole of it."""
    kinds: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: kinds.append(type(self).__name__))
    model = build_model(tiny_cfg)
    compile_layers(model, "inductor")
    assert kinds == ["SwinTransformerBlock"] * 4 + ["EncoderLayer", "SegDecoder"]
    kinds.clear()
    model.backbone.trunk = nn.Sequential(nn.Linear(1, 1))
    compile_layers(model, "inductor")
    assert kinds == ["Sequential", "EncoderLayer", "SegDecoder"]
    compile_layers(model, "")
    assert len(kinds) == 3


def test_unknown_backend(make_cfg: MakeCfg) -> None:
    with pytest.raises(FXError, match="MODEL.COMPILE is 'fast': leave it empty, or choose"):
        FXTrainer(make_cfg("MODEL.COMPILE", "fast"))
