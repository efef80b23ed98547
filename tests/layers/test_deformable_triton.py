"""The Triton kernels without a GPU: their results in Triton's interpreter, and that they compile for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layers.sampler_cases import CASES

triton = pytest.importorskip("triton", reason="Triton comes with torch for GPUs")


def test_cases_in_the_interpreter() -> None:
    """A process of its own: Triton decides at its import how kernels run."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(folder / "triton_cases.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(folder.parents[1]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    own = ["reads_half_precision", "refuses_what_is_not_deterministic"]
    assert done.stdout.split() == [*(case.__name__ for case in CASES), *own]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["sum_kernel", "grad_kernel"])
def test_kernel_compiles_for_a_gpu(name: str, capability: int) -> None:
    """To machine code of an A100 and an H100; Triton brings the assembler."""
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    from fx_d2.layers import deformable_triton

    kernel = getattr(deformable_triton, name)
    sizes = {"LEVELS": 4, "POINTS": 4, "DIM": 32, "WIDE": 32, "BLOCK": deformable_triton.BLOCK}
    types = {"value": "*bf16", "table": "*i64", **dict.fromkeys(("rows", "tokens", "heads", "queries"), "i32")}
    signature = {arg: "constexpr" if arg.isupper() else types.get(arg, "*fp32") for arg in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, {**sizes, "TYPE": triton.language.float32})
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options={"num_warps": 4})
    assert len(built.asm["cubin"]) > 1000
