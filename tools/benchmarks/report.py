"""Reports: Markdown tables, the environment of a measurement, and writing both to files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fx_d2.engine import versions
from fx_d2.engine.precision import cpu_has_bfloat16

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""glibc settings that keep freed memory in the process. By default, large tensors are returned to the kernel on every
free, and the page faults of the next allocation cost as much as the computation."""

ROOT = Path(__file__).resolve().parents[2]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded cells; first column left-aligned, the others right-aligned."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(2, *(len(line[i]) for line in lines)) for i in range(len(columns))]

    def text(line: Sequence[str]) -> str:
        cells = [x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(text, [columns, rule, *rows]))


def tables_of(markdown: str) -> list[dict[str, Any]]:
    """The tables in a Markdown text as {"columns", "rows"}, cells as strings."""
    tables: list[dict[str, Any]] = []
    inside = False
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            inside = False
        elif not inside:
            tables.append({"columns": cells, "rows": []})
            inside = True
        elif any(cell.strip("-:") for cell in cells):
            tables[-1]["rows"].append(cells)
    return tables


def environment(device: str) -> dict[str, str]:
    """What the results depend on: date, commit, machine, threads, allocator, versions."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    named = versions()
    gpu = {"GPU": torch.cuda.get_device_name()} if device.startswith("cuda") else {}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": described.stdout.strip() or "not a git checkout",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        **gpu,
        "threads": f"{torch.get_num_threads()} (torch)",
        "allocator": _allocator(),
        "versions": ", ".join(f"{name} {named[name]}" for name in ("torch", "timm", "python")),
    }


def described(facts: Mapping[str, str]) -> str:
    """The environment as one paragraph."""
    return "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."


def write_report(path: Path, facts: Mapping[str, str], sections: Mapping[str, str]) -> None:
    """Write a report as Markdown, or to a .json file the tables as data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        tables = {name: tables_of(text) for name, text in sections.items()}
        path.write_text(json.dumps({"environment": dict(facts), "sections": tables}, indent=1), encoding="utf-8")
        return
    parts = [described(facts), *(f"### {name}\n\n{text}" for name, text in sections.items())]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def restart_with_allocator() -> None:
    """Re-execute this command with ALLOCATOR in the environment, which glibc reads at start-up."""
    if platform.libc_ver()[0] == "glibc" and any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)


def _allocator() -> str:
    settings = {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")}
    return " ".join(f"{key}={value}" for key, value in sorted(settings.items())) or "default"


def _processor() -> str:
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {'with' if cpu_has_bfloat16() else 'without'} bfloat16 instructions"
