"""Operating points: thresholds chosen on validation splits, stored next to the weights, applied to other splits."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from fx_d2.evaluation.common import plain
from fx_d2.files import write_atomic
from fx_d2.structures import FXError

logger = logging.getLogger(__name__)

FILE_NAME = "operating_points.json"
FORMAT = "fx_d2_operating_points"

Points = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Model ("student") -> dataset -> {"split", "points": {class: {"threshold", "sensitivity", "specificity"}}}."""


def write_points(path: str | Path, points: Points, weights: Mapping[str, str], specificity: float) -> None:
    """Write operating points atomically.

    Args:
        path: normally FILE_NAME next to the checkpoint.
        points: the operating points; NaN (undefined) becomes null.
        weights: hash of each model's weights.
        specificity: the specificity for which they were chosen.
    """
    models = {which: {"weights": weights[which], "datasets": plain(rows)} for which, rows in points.items()}
    content = {"format": FORMAT, "specificity": specificity, "models": models}
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def build_thresholds(cfg: CfgNode, weights: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """`read_points` of TEST.OPERATING_POINTS, else of FILE_NAME next to MODEL.WEIGHTS; {} if there is neither."""
    path = cfg.TEST.OPERATING_POINTS
    if not path and cfg.MODEL.WEIGHTS:
        beside = Path(cfg.MODEL.WEIGHTS).parent / FILE_NAME
        path = beside if beside.is_file() else ""
    return read_points(path, weights) if path else {}


def read_points(path: str | Path, weights: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Thresholds as model -> dataset -> class -> threshold; classes without an operating point are left out.

    A model gets none, with a warning, if the points were chosen for other weights.

    Raises:
        FXError: the file is missing or not a file of `write_points`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FXError(f"operating points {path}: {error.strerror}; evaluating a validation split writes them") from None
    except ValueError:
        raise FXError(f"operating points {path}: not JSON; evaluate a validation split to write them") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FXError(f"{path} is not an operating points file: evaluating a validation split writes one")
    found = {}
    for which, digest in weights.items():
        row = content["models"].get(which)
        if row is None:
            continue
        if row["weights"] != digest:
            logger.warning("%s was made with other weights of the %s: not applied", path, which)
            continue
        found[which] = {
            dataset: {
                name: float(point["threshold"])
                for name, point in chosen["points"].items()
                if point["threshold"] is not None
            }
            for dataset, chosen in row["datasets"].items()
        }
    return found
