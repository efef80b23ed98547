"""Average precision compared with pycocotools, and evaluation's share of the training time.

First table: random detections near and far from random ground-truth boxes, 14 classes, 100 detections per image. Each
candidate processes all of them and computes average precision at the same 12 thresholds; ours also computes recall and
FROC. Times are CPU seconds.

Second table: from measured steps and inference passes, the share of evaluating student and teacher on the validation
splits every N cycles of the eleven datasets. Image counts are the published ones; a dataset without a published
validation split counts with a tenth of its training images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.cycle import cycle_images, train_images
from benchmarks.inference import infer
from benchmarks.report import markdown_table
from benchmarks.timing import ratios, spread, take_turns, wall_clock
from benchmarks.world import Ours, draw_batch, drawn_world, make_cfg, recommended, repetitions, verdict
from fx_d2.data.table import BY_NAME
from fx_d2.evaluation.localization import IOU_THRESHOLDS, LocalizationEvaluator
from fx_d2.structures import DatasetSpec, specs_of

HELP = "average precision compared with pycocotools; evaluation's share of the training time"
SPEC = BY_NAME["vindr_local"]
SIDE, DETECTIONS, TRUTHS = 1024, 100, 3.5
BASELINE, OURS = "pycocotools", "fx_d2"
TARGET, SHARE = 5.0, 0.10
"""Target speed-up over pycocotools, and largest allowed share of evaluation in the training time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The section's options."""
    parser.add_argument("--images", type=int, default=0, help="images of the first table (default 5000)")


def run(args: argparse.Namespace) -> str:
    """Measure; the report."""
    return f"{_precision(args)}\n\n{_share(args)}"


def _precision(args: argparse.Namespace) -> str:
    count = args.images or (20 if args.quick else 5000)
    truth, found = draw_boxes(count)
    inputs, coco = [], _as_coco(truth, found)
    for image in range(count):
        boxes, scores, classes = found[image]
        known = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": c} for box, c in truth[image]]
        corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
        kept = {"pred_boxes": Boxes(torch.from_numpy(corners)), "scores": torch.from_numpy(scores)}
        output = {"instances": Instances((SIDE, SIDE), pred_classes=torch.from_numpy(classes), **kept)}
        sample = {"image_id": image, "file_name": str(image), "annotated": {"loc": True}, "annotations": known}
        inputs.append((sample, output))
    results: dict[str, float] = {}
    candidates = {
        BASELINE: lambda _: results.__setitem__(BASELINE, with_pycocotools(*coco)),
        OURS: lambda _: results.__setitem__(OURS, with_ours(inputs)),
    }
    times = take_turns(candidates, repetitions(args, 3))
    rows = []
    for name in times:
        values = ratios(times, BASELINE, name)
        target = verdict(statistics.median(values), TARGET if name == OURS else None)
        rows.append([name, spread(times[name]), spread(values), target, f"{results[name]:.6f}"])
    columns = ["candidate", "CPU s", "times as fast", "target", "AP .50:.95"]
    return f"{count} images, {DETECTIONS} detections each\n\n{markdown_table(columns, rows)}"


def draw_boxes(count: int) -> tuple[list[list], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Per image ground truth, [(xywh, class)], and detections (xywh, scores, classes), a third of them near a box."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(count):
        known = [(_box(rng), int(rng.integers(len(SPEC.loc_classes)))) for _ in range(rng.poisson(TRUTHS))]
        boxes = np.array([_box(rng) for _ in range(DETECTIONS)])
        classes = rng.integers(0, len(SPEC.loc_classes), DETECTIONS)
        if known:
            for i in range(DETECTIONS // 3):
                box, label = known[int(rng.integers(len(known)))]
                boxes[i], classes[i] = np.array(box) * rng.uniform(0.8, 1.2, 4), label
        truth.append(known)
        found.append((boxes, rng.random(DETECTIONS).astype(np.float32), classes))
    return truth, found


def _box(rng: np.random.Generator) -> list[float]:
    return [*(rng.uniform(0, 0.7, 2) * SIDE), *(rng.uniform(0.05, 0.3, 2) * SIDE)]


def _as_coco(truth: list[list], found: list[tuple]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO dataset and its list of results."""
    boxes = [(image, box, label) for image, known in enumerate(truth) for box, label in known]
    annotations = [
        {"id": i, "image_id": image, "bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, box, label) in enumerate(boxes, start=1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(SPEC.loc_classes)]
    images = [{"id": image, "width": SIDE, "height": SIDE} for image in range(len(truth))]
    results = [
        {"image_id": image, "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
        for image, parts in enumerate(found)
        for box, score, label in zip(*parts, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def with_pycocotools(dataset: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Mean average precision at IoU .50:.95."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "bbox")
        evaluation.params.iouThrs, evaluation.params.areaRng = IOU_THRESHOLDS, [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][2:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def with_ours(inputs: list[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    """The same by our evaluator."""
    evaluator = LocalizationEvaluator(SPEC)
    for sample, output in inputs:
        evaluator.process([sample], [output])
    found = evaluator.evaluate()
    assert found is not None, "one process"
    return found["loc"]["AP"]


def _share(args: argparse.Namespace) -> str:
    folder, root = drawn_world(images=args.batch)
    with folder:
        ours = Ours(make_cfg(args, root, recommended(args.device)[1]))
        cfg, clock, count = ours.trainer.cfg, wall_clock(args.device), repetitions(args, 3)
        specs = specs_of(cfg.DATASETS.TRAIN)
        images = cycle_images(specs, cfg.SCHEDULE, args.batch)
        seconds = 0.0
        for kind in ours.phases:
            ours.enter(kind)
            (step,) = take_turns({kind: lambda _: ours.step()}, count, clock).values()
            seconds += images[kind] / args.batch * statistics.median(step)
    model = ours.trainer.model.eval()
    batch, passes = draw_batch(model, cfg.INPUT.SIZE, args.batch, original=SIDE), {}
    for tasks in {spec.tasks for spec in specs}:
        (found,) = take_turns({"": lambda _, tasks=tasks: infer(model, batch, tasks)}, count, clock).values()
        passes[tasks] = statistics.median(found) / args.batch
    models = len(cfg.TEST.MODELS)
    evaluation = models * sum(passes[spec.tasks] * _validation_images(spec) for spec in specs)
    return _frequencies(cfg, seconds, evaluation, args.batch)


def _validation_images(spec: DatasetSpec) -> float:
    return dict(spec.expected).get("val", 0.1 * train_images(spec))


def _frequencies(cfg: CfgNode, cycle: float, evaluation: float, batch: int) -> str:
    """The table of shares; by default a run is evaluated only at its end."""
    usual = cfg.TEST.EVAL_CYCLES or cfg.SCHEDULE.CYCLES
    rows = []
    for every in sorted({1, 5, 10, usual}):
        share = evaluation / (evaluation + every * cycle)
        target = verdict(share, SHARE if every == usual else None, at_least=False)
        name = f"{every} (the config's)" if every == usual else str(every)
        rows.append([name, f"{every * cycle / 3600:.2f}", f"{evaluation / 3600:.2f}", f"{100 * share:.1f} %", target])
    head = f"training with batch size {batch}, as recommended; evaluation with the same, masks of {SIDE} pixels"
    columns = ["cycles per evaluation", "training, h", "evaluation, h", "share", "target"]
    return f"{head}\n\n{markdown_table(columns, rows)}"
