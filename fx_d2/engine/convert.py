"""Conversion of checkpoints in any known layout to the weights of an fx_d2 model, with a report for each weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate  # type: ignore[import-untyped]
from torch import Tensor, nn

from fx_d2.engine.weights import Source
from fx_d2.modeling import FoundationX
from fx_d2.modeling.convert import Renamed, convert_state
from fx_d2.structures import COMPONENTS, FXError


def compare(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names that match, are missing in the state, are unexpected in it, or differ in shape."""
    own = model.state_dict()
    both = [key for key in own if key in state]
    return {
        "matched": [key for key in both if own[key].shape == state[key].shape],
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "reshaped": [key for key in both if own[key].shape != state[key].shape],
    }


@dataclass(frozen=True)
class Conversion:
    """The result of converting a file for a model.

    Attributes:
        path: the file.
        which: "student" or "teacher".
        renamed: the file's tensors under fx_d2's names, and those without a counterpart.
        report: from `compare`.
    """

    path: str
    which: str
    renamed: Renamed
    report: dict[str, list[str]]

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights that match."""
        return {key: self.renamed.state[key] for key in self.report["matched"]}

    @property
    def complete(self) -> bool:
        """Whether all weights of the model are present."""
        return not self.report["missing"] and not self.report["reshaped"]

    def describe(self) -> str:
        """Table of counts by component, followed by the unmatched weights and by notes on what was changed."""
        counts = {kind: Counter(name.split(".", 1)[0] for name in names) for kind, names in self.report.items()}
        parts = [*COMPONENTS, *sorted({part for count in counts.values() for part in count} - set(COMPONENTS))]
        rows = [[part, *(count[part] for count in counts.values())] for part in parts]
        lines = [f"{self.path}: {self.renamed.layout} layout, {self.which}"]
        lines.append(tabulate([row for row in rows if any(row[1:])], headers=["component", *counts], tablefmt="simple"))
        for kind in ("missing", "unexpected", "reshaped"):
            lines += [f"{kind}: {_some(names)}"] if (names := self.report[kind]) else []
        if self.renamed.unknown:
            lines.append(f"in the file, but not part of this layout: {_some(self.renamed.unknown)}")
        if self.renamed.unused:
            lines.append(f"in the file, without a counterpart in fx_d2: {_some(self.renamed.unused)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.renamed.notes)])


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)}, such as {shown}" if len(names) > 3 else shown


def convert_source(source: Source, which: str, model: nn.Module) -> Conversion:
    """Rename, reshape and compare; the model itself is not modified, and may be on the meta device.

    Args:
        source: the file.
        which: "student" or "teacher".
        model: the target model.

    Raises:
        FXError: the file lacks that model, or contains no matching weight.
    """
    renamed = convert_state(source.pick(which), model.state_dict())
    renamed.notes += source.notes if which == "teacher" else []
    conversion = Conversion(source.path, which, renamed, compare(model, renamed.state))
    if not conversion.report["matched"]:
        raise FXError(
            f"checkpoint {source.path} matches no weight of this model: it is of another architecture "
            f"({renamed.layout} layout, with names such as {next(iter(source.pick(which)))})"
        )
    return conversion


def build_shapes(cfg: CfgNode) -> FoundationX:
    """The model of a config on the meta device: names, shapes and dtypes of its weights, without memory or download."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.TIMM.KWARGS.pop("pretrained", None)
    with torch.device("meta"):
        return build_model(cfg)
