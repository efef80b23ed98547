"""Predictions as plain data: one JSON file per model, for visualization and for analysis outside fx_d2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from fx_d2.files import write_atomic
from fx_d2.structures import FXError

FORMAT = "fx_d2_predictions"


def prediction_record(sample: dict[str, Any], output: dict[str, Any], score_thresh: float) -> dict[str, Any]:
    """Output of the model for one image as plain data; only tasks in the output have keys.

    Args:
        sample: the evaluation sample (`file_name`, `image_id`).
        output: the model's output dict for it.
        score_thresh: boxes with lower scores are left out.

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

    Raises FXError if the file lacks the split, and as `read_all_predictions`.
    """
    which, splits = read_all_predictions(path, score_thresh)
    if split not in splits:
        raise FXError(f"{path} has no split {split!r}, only {sorted(splits)}: add it to DATASETS.TEST")
    return which, splits[split]


def read_all_predictions(path: str | Path, score_thresh: float) -> tuple[str, dict[str, dict[int, dict[str, Any]]]]:
    """Name of the model, and its records as registered split -> image id -> record.

    Raises FXError if the file is missing, not a predictions file, or was saved with a threshold above `score_thresh`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FXError(f"predictions file {path}: {error.strerror}; TEST.SAVE_PREDICTIONS True writes one") from None
    except ValueError:
        raise FXError(f"predictions file {path} is not JSON: evaluate again to write it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FXError(f"{path} is not an fx_d2 predictions file: give the predictions_student.json of an evaluation")
    if content["score_thresh"] > score_thresh:
        raise FXError(
            f"{path} has no boxes with scores below {content['score_thresh']:g}, but {score_thresh:g} was requested: "
            "evaluate again with a lower TEST.SAVE_SCORE_THRESH"
        )
    splits = content["splits"].items()
    return content["which"], {split: {record["image_id"]: record for record in rows} for split, rows in splits}
