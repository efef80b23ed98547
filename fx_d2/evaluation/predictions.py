"""Predictions as plain data: one json a model, for pictures and for analysis outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from fx_d2.evaluation.common import write_atomic
from fx_d2.structures import FXError

FORMAT = "fx_d2_predictions"


def prediction_record(sample: dict[str, Any], output: dict[str, Any], score_thresh: float) -> dict[str, Any]:
    """One image's output as plain data; a key is there when the output has the task.

    Args:
        sample: the evaluation sample (`file_name`, `image_id`).
        output: the model's dict for it.
        score_thresh: boxes below this score are left out.

    Returns:
        {"file_name", "image_id", "cls": [probability per class], "boxes": [[x1, y1, x2, y2] original pixels],
        "scores": [...], "classes": [0-based], "masks": [compressed RLE per class, original pixels]}.
    """
    record: dict[str, Any] = {"file_name": str(sample["file_name"]), "image_id": int(sample["image_id"])}
    if "cls" in output:
        record["cls"] = [round(p, 6) for p in output["cls"].detach().float().cpu().tolist()]
    if "instances" in output:
        instances = output["instances"].to("cpu")
        kept = instances[instances.scores >= score_thresh]
        record["boxes"] = [[round(v, 2) for v in box] for box in kept.pred_boxes.tensor.tolist()]
        record["scores"] = [round(s, 6) for s in kept.scores.tolist()]
        record["classes"] = kept.pred_classes.tolist()
    if "masks" in output:
        record["masks"] = [_encode(channel.cpu().numpy()) for channel in output["masks"]]
    return record


def _encode(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(v) for v in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def write_predictions(path: str | Path, which: str, splits: dict[str, list[dict[str, Any]]], thresh: float) -> None:
    """Write all splits of one model ("student" or "teacher") atomically; read back by `read_predictions`."""
    content = {"format": FORMAT, "which": which, "score_thresh": thresh, "splits": splits}
    write_atomic(path, json.dumps(content, separators=(",", ":")))


def read_predictions(path: str | Path, split: str, score_thresh: float) -> tuple[str, dict[int, dict[str, Any]]]:
    """Name of the model, and the records of one registered split by image id.

    Raises FXError when the file lacks the split, and as `read_all_predictions`.
    """
    which, splits = read_all_predictions(path, score_thresh)
    if split not in splits:
        raise FXError(f"{path} holds no split {split!r}, only {sorted(splits)}: put it in DATASETS.TEST")
    return which, splits[split]


def read_all_predictions(path: str | Path, score_thresh: float) -> tuple[str, dict[str, dict[int, dict[str, Any]]]]:
    """Name of the model, and by registered split its records by image id.

    Raises FXError when the file is absent, is something else, or lacks boxes from `score_thresh` up.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FXError(f"predictions file {path}: {error.strerror}; TEST.SAVE_PREDICTIONS True writes one") from None
    except ValueError:
        raise FXError(f"predictions file {path} is not json: evaluate again to write it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FXError(f"{path} is not a predictions file of fx_d2: give a predictions_student.json of an evaluation")
    if content["score_thresh"] > score_thresh:
        raise FXError(
            f"{path} holds boxes with a score of {content['score_thresh']:g} or more, not from {score_thresh:g} on: "
            "evaluate again with a lower TEST.SAVE_SCORE_THRESH"
        )
    splits = content["splits"].items()
    return content["which"], {split: {record["image_id"]: record for record in rows} for split, rows in splits}
