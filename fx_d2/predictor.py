"""Inference with a trained model: from a checkpoint and X-rays to named labels, boxes and masks in original pixels.

predictor = FXPredictor.from_checkpoint("output/fx/model_final.pth")
first, second = predictor(["a.png", "b.dcm"], datasets=["chestx_det"])
first["chestx_det"].labels  # {"Atelectasis": 0.03, ...}
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from fx_d2.data.cache import read_size, resize_image
from fx_d2.data.film import Film, Source, read_film
from fx_d2.data.masks import encode_mask
from fx_d2.engine.bundle import read_bundle
from fx_d2.engine.setup import check_device
from fx_d2.evaluation import weights_hash
from fx_d2.evaluation.operating_points import FILE_NAME, read_points
from fx_d2.modeling import FoundationX
from fx_d2.structures import TASKS, DatasetSpec, FXError
from fx_d2.visualization import Findings


@dataclass(frozen=True, eq=False)
class HeadPrediction:
    """Predictions of one dataset's heads for one image; fields of tasks that were not requested are None.

    Attributes:
        spec: the dataset row.
        labels: class -> probability; for a softmax dataset they sum to 1.
        boxes: float32 (N, 4), x1, y1, x2, y2 in original pixels, best first; without NMS.
        scores: float32 (N,) in [0, 1].
        classes: int64 (N,), index into `spec.loc_classes`.
        masks: bool (C, H, W) in original pixels, in the order of `spec.seg_classes`; masks may overlap.
        thresholds: image-level class -> operating point, for classes that have one.
    """

    spec: DatasetSpec
    labels: dict[str, float] | None = None
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    classes: np.ndarray | None = None
    masks: np.ndarray | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def above(self) -> dict[str, bool]:
        """Class -> whether its probability reaches its operating point, for classes that have one."""
        labels = self.labels or {}
        return {name: labels[name] >= point for name, point in self.thresholds.items() if name in labels}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with class names; only the predicted tasks have keys.

        Returns:
            {"labels": {class: probability}, "operating_points": {class: {"threshold", "above"}} if there are any,
            "boxes": [{"class", "score", "box": [x1, y1, x2, y2]}], "masks": {class: compressed COCO RLE}}.
        """
        found: dict[str, Any] = {}
        if self.labels is not None:
            found["labels"] = dict(self.labels)
            points = {name: {"threshold": self.thresholds[name], "above": above} for name, above in self.above.items()}
            found |= {"operating_points": points} if points else {}
        if self.boxes is not None and self.scores is not None and self.classes is not None:
            rows = zip(self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
            names = self.spec.loc_classes
            found["boxes"] = [{"class": names[kind], "score": score, "box": box} for kind, score, box in rows]
        if self.masks is not None:
            found["masks"] = {c: encode_mask(m) for c, m in zip(self.spec.seg_classes, self.masks, strict=True)}
        return found

    def findings(self) -> Findings:
        """The same as `Findings`, for drawing."""
        return Findings(
            labels=None if self.labels is None else tuple(self.labels.values()),
            boxes=self.boxes,
            classes=self.classes,
            scores=self.scores,
            masks=None if self.masks is None else tuple(self.masks),
        )


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """All predictions for one image.

    Attributes:
        file_name: None if the image does not come from a file.
        height: of the original image in pixels.
        width: of the original image in pixels.
        heads: dataset -> its heads' predictions; also `prediction[dataset]`.
    """

    file_name: str | None
    height: int
    width: int
    heads: Mapping[str, HeadPrediction]

    def __getitem__(self, dataset: str) -> HeadPrediction:
        return self.heads[dataset]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: {"file_name", "height", "width", "heads": {dataset: `HeadPrediction.to_dict`}}."""
        heads = {name: head.to_dict() for name, head in self.heads.items()}
        return {"file_name": self.file_name, "height": self.height, "width": self.width, "heads": heads}


class FXPredictor:
    """A model in evaluation mode with the image loading it was trained with; usually made by `from_checkpoint`.

    Thread-safe: threads load images concurrently, and the model runs one batch at a time.

    Args:
        model: in evaluation mode.
        size: (height, width) to which images are resized, as in training.
        tasks: dataset -> the tasks whose heads are trained; other heads are never used.
        read_size: INPUT.READ_SIZE, the shorter side to which images are reduced first; 0 = not reduced.
        dtype: INPUT.DTYPE, "uint8" or "float32".
        batch_size: images per forward pass.
        which: "student" or "teacher".
        thresholds: dataset -> class -> operating point, copied to the predictions.

    Raises:
        FXError: `batch_size` is less than 1.
    """

    def __init__(
        self,
        *,
        model: FoundationX,
        size: tuple[int, int],
        tasks: Mapping[str, Sequence[str]],
        read_size: int = 0,
        dtype: str = "uint8",
        batch_size: int = 16,
        which: str = "student",
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        if batch_size < 1:
            raise FXError(f"batch_size={batch_size}: must be at least 1")
        self.which, self.thresholds = which, thresholds or {}
        self.model, self.size, self.batch_size = model, size, batch_size
        self.read_size, self.dtype = read_size, dtype
        self.tasks = {name: tuple(each) for name, each in tasks.items() if each}
        self._lock = threading.Lock()

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, which: str | None = None, device: str | None = None, batch_size: int = 16
    ) -> FXPredictor:
        """A predictor from a training checkpoint or an inference checkpoint (tools/export.py).

        The file contains everything needed: no config, dataset or network access is required. Operating points are
        loaded from an `operating_points.json` next to it if they were chosen for these weights.

        Args:
            path: a .pth, or the folder of an inference checkpoint.
            which: "student" or "teacher"; None: the student, or the only one in the file.
            device: a torch device; None: the GPU if there is one.
            batch_size: images per forward pass.

        Raises:
            FXError: see `engine.bundle.read_bundle` and `Bundle.build`.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device)
        bundle = read_bundle(path)
        height, width = bundle.cfg.INPUT.SIZE
        predictor = cls(
            model=bundle.build(which, device),
            size=(height, width),
            tasks={spec.name: bundle.trained_tasks(spec) for spec in bundle.specs},
            read_size=bundle.cfg.INPUT.READ_SIZE,
            dtype=bundle.cfg.INPUT.DTYPE,
            batch_size=batch_size,
            which=bundle.choose(which),
        )
        points = Path(bundle.path)
        points = (points if points.is_dir() else points.parent) / FILE_NAME
        if points.is_file():
            found = read_points(points, {predictor.which: predictor.weights_hash})
            predictor.thresholds = found.get(predictor.which, {})
        return predictor

    @cached_property
    def weights_hash(self) -> str:
        """Hash of the model's weights, as in evaluation results."""
        return weights_hash(self.model)

    def read(self, source: Source | bytes, *, name: str | None = None) -> Film:
        """Load an image as the model expects it, see `data.film.read_film`; threads may call it to prefetch."""
        return read_film(source, dtype=self.dtype, name=name)

    @overload
    def __call__(self, images: Source, **options: Any) -> ImagePrediction: ...

    @overload
    def __call__(self, images: Sequence[Source], **options: Any) -> list[ImagePrediction]: ...

    def __call__(self, images: Source | Sequence[Source], **options: Any) -> ImagePrediction | list[ImagePrediction]:
        """One prediction for one image, a list for a list; options as for `stream`."""
        if isinstance(images, Source):
            return next(self.stream([images], **options))
        return list(self.stream(images, **options))

    def stream(
        self,
        images: Iterable[Source],
        *,
        datasets: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        score_thresh: float = 0.05,
    ) -> Iterator[ImagePrediction]:
        """Predictions one by one, in order; at most one batch is held in memory.

        One forward pass of the backbone serves all heads.

        Args:
            images: see `data.film.Source`.
            datasets: whose heads to use; None: all.
            tasks: of "cls", "loc", "seg"; None: all tasks with trained heads.
            score_thresh: boxes below this score are dropped.

        Raises:
            FXError: an image cannot be loaded, the model does not know a dataset, or none of the datasets has a trained
                head for the tasks.
        """
        wanted = self.wanted(datasets, tasks)
        for batch in self._batches(images):
            with self._lock:
                results = self.model.predict(batch, wanted)
            for sample, result in zip(batch, results, strict=True):
                heads = {name: self._head(name, found, score_thresh) for name, found in result.items()}
                yield ImagePrediction(sample["file_name"], sample["height"], sample["width"], heads)

    def features(self, images: Source | Iterable[Source]) -> np.ndarray:
        """Image features: float32 (N, C), C = 1024 for Swin-B, N = 1 for one image.

        The last backbone stage, normalised, then averaged over positions: the input of the classification heads.
        """
        rows = [np.empty((0, self.model.backbone.channels[-1]), np.float32)]
        for batch in self._batches([images] if isinstance(images, Source) else images):
            with self._lock:
                rows.append(self.model.embed(batch).float().cpu().numpy())
        return np.concatenate(rows)

    @property
    def specs(self) -> dict[str, DatasetSpec]:
        """Dataset -> row, for datasets with trained heads; classes are in the order of the outputs."""
        return {name: self.model.specs[name] for name in self.tasks}

    def wanted(self, datasets: Sequence[str] | None, tasks: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
        """Dataset -> tasks that `stream` computes for these options; raises the same errors."""
        names = list(self.tasks) if datasets is None else list(datasets)
        if isinstance(datasets, str) or not set(names) <= set(self.tasks):
            raise FXError(f"datasets={datasets!r}: must be a list of the model's datasets: {list(self.tasks)}")
        chosen = TASKS if tasks is None else tuple(tasks)
        if isinstance(tasks, str) or not set(chosen) <= set(TASKS):
            raise FXError(f"tasks={tasks!r}: must be a list of {TASKS}")
        wanted = {name: tuple(task for task in self.tasks[name] if task in chosen) for name in names}
        wanted = {name: each for name, each in wanted.items() if each}
        if not wanted:
            raise FXError(f"no head of {names} is trained for any of {list(chosen)}; trained are {self.tasks}")
        return wanted

    def _batches(self, images: Iterable[Source]) -> Iterator[list[dict[str, Any]]]:
        """Batches of samples for `FoundationX.predict`."""
        source = iter(images)
        while chunk := list(islice(source, self.batch_size)):
            samples = []
            for image in chunk:
                film = self.read(image)
                height, width = film.pixels.shape
                reduced = resize_image(film.pixels, read_size(height, width, self.read_size))
                small = torch.from_numpy(np.ascontiguousarray(resize_image(reduced, self.size)[None]))
                samples.append({"file_name": film.name, "image": small, "height": height, "width": width})
            yield samples

    def _head(self, name: str, found: Mapping[str, Any], score_thresh: float) -> HeadPrediction:
        spec = self.model.specs[name]
        labels = boxes = scores = classes = masks = None
        if "cls" in found:
            labels = dict(zip(spec.cls_classes, found["cls"].tolist(), strict=True))
        if "instances" in found:
            instances = found["instances"]
            instances = instances[instances.scores >= score_thresh].to("cpu")
            boxes = instances.pred_boxes.tensor.numpy()
            scores, classes = instances.scores.numpy(), instances.pred_classes.numpy()
        if "masks" in found:
            masks = found["masks"].cpu().numpy()
        return HeadPrediction(spec, labels, boxes, scores, classes, masks, self.thresholds.get(name, {}))
