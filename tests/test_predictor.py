"""A trained model in use: from files and arrays to named findings."""

import json
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image
from pycocotools import mask as mask_utils
from pydicom import dcmread

from fx_d2.data import EvalMapper
from fx_d2.engine.bundle import read_bundle, with_heads, write_inference, write_training_checkpoint
from fx_d2.evaluation.operating_points import FILE_NAME, write_points
from fx_d2.predictor import FXPredictor
from fx_d2.structures import DatasetSpec, FXError
from fx_d2.visualization import draw_comparison
from fx_d2.visualization.findings import Findings

HEIGHT, WIDTH = 90, 70


@pytest.fixture
def predictor(tiny_checkpoint: Path) -> FXPredictor:
    return FXPredictor.from_checkpoint(tiny_checkpoint, device="cpu", batch_size=2)


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    paths, rng = [], np.random.default_rng(0)
    for i in range(3):
        paths.append(tmp_path / f"film{i}.png")
        coarse = rng.integers(0, 256, (9, 7), dtype=np.uint8)
        cv2.imwrite(str(paths[-1]), cv2.resize(coarse, (WIDTH + 10 * i, HEIGHT)))
    return paths


def calls_of(module: torch.nn.Module) -> list[int]:
    """A list that grows by the batch size at each call."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize(("read_size", "dtype"), [(0, "uint8"), (66, "float32")])
def test_predictions_are_those_of_evaluation(
    tiny_checkpoint: Path, films: list[Path], tiny_cfg: CfgNode, read_size: int, dtype: str
) -> None:
    """The same reader, sizes, softmax and pixels; for files, arrays and PIL images alike."""
    content = torch.load(tiny_checkpoint)
    tiny_cfg.INPUT.READ_SIZE, tiny_cfg.INPUT.DTYPE = read_size, dtype
    torch.save(content | {"config": tiny_cfg.dump()}, tiny_checkpoint)
    predictor = FXPredictor.from_checkpoint(tiny_checkpoint, device="cpu")
    model = read_bundle(tiny_checkpoint).build("student")
    for name, spec in model.specs.items():
        mapper = EvalMapper(tiny_cfg, spec)
        unlabelled = {"annotated": {"cls": False, "loc": False, "seg": False}}
        record = {"dataset": name, "image_id": 0, "file_name": str(films[0]), "height": HEIGHT, "width": WIDTH}
        rest = dict.fromkeys(("annotations", "masks", "ignore_mask", "patient_id", "meta", "stored_size", "intensity"))
        truth = model([mapper(record | rest | unlabelled)])[0]
        pixels = cv2.imread(str(films[0]), cv2.IMREAD_GRAYSCALE)
        for source in (films[0], str(films[0]), pixels, np.stack([pixels] * 3, -1), Image.fromarray(pixels)):
            found = predictor(source, datasets=[name], score_thresh=0.0)
            assert (found.height, found.width) == (HEIGHT, WIDTH) and list(found.heads) == [name]
            head = found[name]
            assert head.labels == dict(zip(spec.cls_classes, truth["cls"].tolist(), strict=True))
            if name == "tiny":
                assert np.array_equal(head.boxes, truth["instances"].pred_boxes.tensor.numpy())
                assert np.array_equal(head.masks, truth["masks"].numpy()) and head.masks.shape == (3, HEIGHT, WIDTH)
            else:
                assert head.boxes is None and head.masks is None and sum(head.labels.values()) == pytest.approx(1)


def test_a_dicom_file_is_the_film_it_holds(predictor: FXPredictor, film_folder: Path) -> None:
    """Stored inverted, without a window, so that the grey values are those that were drawn."""
    path = film_folder / "c.dcm"
    pixels = 255 - dcmread(path).pixel_array
    ours, theirs = predictor([path, pixels], score_thresh=0.0)
    assert ours.file_name == str(path) and ours.to_dict()["heads"] == theirs.to_dict()["heads"]


def test_one_pass_of_the_trunk_for_all_heads_and_a_batch_at_a_time(predictor: FXPredictor, films: list[Path]) -> None:
    seen = calls_of(predictor.model.backbone)
    found = predictor(films)
    assert seen == [2, 1] and [f.file_name for f in found] == [str(p) for p in films]
    assert [f.width for f in found] == [70, 80, 90] and set(found[0].heads) == {"tiny", "tiny_softmax"}
    stream = predictor.stream(iter(films))
    next(stream)
    assert seen == [2, 1, 2], "a stream reads no further than it must"


def test_only_what_is_asked_for_runs(predictor: FXPredictor, films: list[Path]) -> None:
    encoder, decoder = calls_of(predictor.model.loc_encoder), calls_of(predictor.model.seg_decoder)
    head = predictor(films[0], tasks=["cls"])["tiny"]
    assert head.labels and head.boxes is None and head.masks is None and encoder == decoder == []
    assert set(predictor(films[0], tasks=["seg"]).heads) == {"tiny"}, "tiny_softmax has no masks"


def test_student_teacher_and_the_exported_model(tiny_checkpoint: Path, films: list[Path], tmp_path: Path) -> None:
    labels = {}
    for which in ("student", "teacher"):
        write_inference(read_bundle(tiny_checkpoint), tmp_path / which, which)
        first = FXPredictor.from_checkpoint(tiny_checkpoint, which=which, device="cpu")(films[0])["tiny"].labels
        assert FXPredictor.from_checkpoint(tmp_path / which, device="cpu")(films[0])["tiny"].labels == first
        labels[which] = first
    assert labels["student"] != labels["teacher"]
    assert FXPredictor.from_checkpoint(tiny_checkpoint, device="cpu")(films[0])["tiny"].labels == labels["student"]


def test_heads_that_have_not_learned_say_nothing(tiny_checkpoint: Path, films: list[Path], tmp_path: Path) -> None:
    fresh = DatasetSpec(name="fresh", title="Fresh", cls_classes=("x",))
    changed, _ = with_heads(read_bundle(tiny_checkpoint), [*read_bundle(tiny_checkpoint).specs, fresh])
    write_training_checkpoint(changed, tmp_path / "more.pth")
    predictor = FXPredictor.from_checkpoint(tmp_path / "more.pth", device="cpu")
    assert set(predictor(films[0]).heads) == set(predictor.specs) == {"tiny", "tiny_softmax"}
    with pytest.raises(
        FXError, match=r"datasets=\['fresh'\]: must be a list of the model's datasets: .*'tiny_softmax'"
    ):
        predictor(films[0], datasets=["fresh"])


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_image(predictor: FXPredictor, size: int) -> None:
    """Without the check, no image would be predicted, and nothing said."""
    with pytest.raises(FXError, match=f"batch_size={size}: must be at least 1"):
        FXPredictor(model=predictor.model, size=predictor.size, tasks=predictor.tasks, batch_size=size)


def test_features_are_the_pooled_embedding(predictor: FXPredictor, films: list[Path]) -> None:
    features = predictor.features(films)
    assert features.shape == (3, 128) and features.dtype == np.float32
    head = predictor.model.cls_heads["tiny"]
    scores = head(torch.from_numpy(features)).sigmoid()
    for found, row in zip(predictor(films), scores.tolist(), strict=True):
        assert list(found["tiny"].labels.values()) == pytest.approx(row, abs=1e-5)
    assert predictor.features(films[0]).shape == (1, 128) and predictor.features([]).shape == (0, 128)


def test_plain_data_for_json(predictor: FXPredictor, films: list[Path]) -> None:
    found = predictor(films[0], score_thresh=0.0)
    data = json.loads(json.dumps(found.to_dict()))
    tiny, head = data["heads"]["tiny"], found["tiny"]
    assert data["file_name"] == str(films[0]) and (data["height"], data["width"]) == (HEIGHT, WIDTH)
    assert tiny["labels"] == pytest.approx(head.labels)
    assert len(tiny["boxes"]) == 8 and tiny["boxes"][0]["class"] == head.spec.loc_classes[head.classes[0]]
    assert tiny["boxes"][3]["box"] == pytest.approx(head.boxes[3].tolist())
    assert list(tiny["masks"]) == list(head.spec.seg_classes)
    for rle, mask in zip(tiny["masks"].values(), head.masks, strict=True):
        assert np.array_equal(mask_utils.decode(rle).astype(bool), mask)
    assert set(data["heads"]["tiny_softmax"]) == {"labels"}


def test_low_scores_are_left_out(predictor: FXPredictor, films: list[Path]) -> None:
    scores = predictor(films[0], score_thresh=0.0)["tiny"].scores
    middle = float(scores[3])
    kept = predictor(films[0], score_thresh=middle)["tiny"]
    assert len(kept.boxes) == len(kept.classes) == (scores >= middle).sum() < len(scores)


def test_a_head_is_drawn(predictor: FXPredictor, films: list[Path]) -> None:
    found = predictor(films[0], score_thresh=0.0)["tiny"]
    grey = cv2.imread(str(films[0]))[..., 0]
    drawn = found.findings()
    assert drawn.labels == tuple(found.labels.values()) and len(drawn.masks) == len(found.spec.seg_classes)
    for given, own in ((drawn.boxes, found.boxes), (drawn.classes, found.classes), (drawn.scores, found.scores)):
        assert len(own) and np.array_equal(given, own)
    assert draw_comparison(grey, found.spec, Findings(), drawn).ndim == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8), np.uint16), r"must be uint8 .* not uint16 \(8, 8\)"),
        (np.zeros((8, 8), np.float32), "not float32"),
        (np.zeros((3, 8, 8), np.uint8), r"not uint8 \(3, 8, 8\)"),
        (np.zeros((0, 8), np.uint8), r"not uint8 \(0, 8\)"),
        (Image.new("P", (8, 8)), "PIL image of mode P"),
        ("no/such.png", r"no/such\.png: image file cannot be read"),
    ],
)
def test_images_of_other_kinds_are_refused(predictor: FXPredictor, source: Any, message: str) -> None:
    with pytest.raises(FXError, match=message):
        predictor(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": ["nih"]}, r"datasets=\['nih'\]: .* datasets: \['tiny', 'tiny_softmax'\]"),
        ({"datasets": "tiny"}, "datasets='tiny': must be a list"),
        ({"tasks": ["detect"]}, r"tasks=\['detect'\]: must be a list of \('cls', 'loc', 'seg'\)"),
        ({"tasks": "cls"}, "tasks='cls': must be a list"),
        ({"datasets": ["tiny_softmax"], "tasks": ["loc"]}, r"no head of \['tiny_softmax'\] is trained for any of"),
    ],
)
def test_what_the_model_does_not_know_is_named(
    predictor: FXPredictor, films: list[Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FXError, match=message):
        predictor(films[0], **options)


def test_threads_share_a_predictor(predictor: FXPredictor, films: list[Path]) -> None:
    alone = [found["tiny"].labels for found in predictor(films)]
    together: dict[int, list[Any]] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: predictor(films)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 4
    assert all([f["tiny"].labels for f in found] == alone for found in together.values())


def test_a_missing_gpu_and_a_missing_file_are_named(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FXError, match="no GPU"):
        FXPredictor.from_checkpoint(tiny_checkpoint, device="cuda")
    with pytest.raises(FXError, match="none.pth does not exist"):
        FXPredictor.from_checkpoint(tiny_checkpoint.with_name("none.pth"))
    # Where there is one it is taken.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr("fx_d2.predictor.check_device", asked.append)
    for device in (None, "cpu"):
        with pytest.raises(FXError, match="none.pth does not exist"):
            FXPredictor.from_checkpoint(tiny_checkpoint.with_name("none.pth"), device=device)
    assert asked == ["cuda", "cpu"]


def test_a_film_is_read_once_by_whoever_reads_it(predictor: FXPredictor, films: list[Path]) -> None:
    film = predictor.read(films[0].read_bytes(), name="film.png")
    found, again = predictor([film, films[0]])
    assert found.file_name == "film.png" and again.file_name == str(films[0])
    assert found.to_dict()["heads"] == again.to_dict()["heads"]
    assert np.array_equal(film.grey, cv2.imread(str(films[0]), cv2.IMREAD_GRAYSCALE))


def test_operating_points_belong_to_weights_and_model(
    tiny_checkpoint: Path, films: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those beside the checkpoint mark what reaches them; of another model or other weights they are not taken."""
    models = {which: FXPredictor.from_checkpoint(tiny_checkpoint, which=which) for which in ("student", "teacher")}
    labels = models["student"](films[0])["tiny"].labels
    assert labels is not None and not models["student"](films[0])["tiny"].above
    points = {"mass": labels["mass"], "left lung": labels["left lung"] + 1e-6, "right lung": float("nan")}
    row = {"tiny": {"split": "tiny_val", "points": {name: {"threshold": value} for name, value in points.items()}}}
    write_points(tmp_path / FILE_NAME, {"student": row}, {"student": models["student"].weights_hash}, 0.9)
    student, teacher = (FXPredictor.from_checkpoint(tiny_checkpoint, which=w) for w in ("student", "teacher"))
    found = student(films[0])
    assert found["tiny"].above == {"mass": True, "left lung": False} and found["tiny_softmax"].above == {}
    assert found.to_dict()["heads"]["tiny"]["operating_points"] == {
        "mass": {"threshold": points["mass"], "above": True},
        "left lung": {"threshold": points["left lung"], "above": False},
    }
    assert student(films[0], tasks=["loc"])["tiny"].above == {}
    assert teacher.which == "teacher" and teacher(films[0])["tiny"].above == {}
    write_inference(read_bundle(tiny_checkpoint), tmp_path / "out")
    write_points(tmp_path / "out" / FILE_NAME, {"student": row}, {"student": student.weights_hash}, 0.9)
    assert FXPredictor.from_checkpoint(tmp_path / "out")(films[0])["tiny"].above == found["tiny"].above
    write_points(tmp_path / FILE_NAME, {"student": row}, {"student": teacher.weights_hash}, 0.9)
    assert FXPredictor.from_checkpoint(tiny_checkpoint)(films[0])["tiny"].above == {}
    assert "was made with other weights of the student: not applied" in caplog.text
