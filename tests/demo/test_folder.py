"""From files to a folder of results."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fx_d2.data import read_image
from fx_d2.demo import document, find_films, predict_files
from fx_d2.demo import folder as module
from fx_d2.predictor import FXPredictor
from fx_d2.structures import FXError
from fx_d2.visualization import draw_prediction


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_written_is_what_the_predictor_says(predictor: FXPredictor, film_folder: Path, tmp_path: Path) -> None:
    paths, out = find_films([str(film_folder / "c.dcm"), str(film_folder / "sub")]).paths, tmp_path / "out"
    outcomes = list(predict_files(predictor, paths, out, score_thresh=0.2))
    assert [o.path for o in outcomes] == list(paths) and not any(o.problem for o in outcomes)
    found = predictor(paths, score_thresh=0.2)
    for line, prediction, path in zip(lines(out), found, paths, strict=True):
        overlays = line.pop("overlays")
        assert line == json.loads(json.dumps(document(prediction, predictor, 0.2)))
        below = path.relative_to(film_folder).as_posix()
        assert overlays == {name: f"overlays/{below}.{name}.png" for name in ("tiny", "tiny_softmax")}
        assert all((out / picture).is_file() for picture in overlays.values())
    labels = table(out / "labels.csv")
    wanted = [p for one in found for head in one.heads.values() for p in (head.labels or {}).values()]
    assert [float(row["probability"]) for row in labels] == wanted
    assert {row["file"] for row in labels} == {str(path) for path in paths}
    assert len(table(out / "boxes.csv")) == sum(len(one["tiny"].boxes) for one in found) > 0
    assert len(table(out / "masks.csv")) == 3 * len(paths)


def test_the_picture_is_that_of_the_film(predictor: FXPredictor, film_folder: Path, tmp_path: Path) -> None:
    path = film_folder / "c.dcm"
    list(predict_files(predictor, [path], tmp_path / "out", datasets=["tiny"], score_thresh=0.2))
    picture = cv2.imread(str(tmp_path / "out/overlays/c.dcm.tiny.png"))[..., ::-1]
    head = predictor(path, score_thresh=0.2)["tiny"]
    caption = "boxes with score >= 0.2   c.dcm"
    assert np.array_equal(picture, draw_prediction(read_image(path), head.spec, head.findings(), caption=caption))


def test_pictures_of_equal_names_stay_apart(predictor: FXPredictor, film_folder: Path, tmp_path: Path) -> None:
    """Equal names in two inputs, and equal stems of two kinds, in one output."""
    for name in ("x/a.png", "y/a.png", "y/a.jpg", "y/a.png.tiny.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(film_folder / ("b.jpg" if name.endswith("jpg") else "a.png"), tmp_path / name)
    paths = find_films([str(tmp_path / "x"), str(tmp_path / "y")]).paths
    list(predict_files(predictor, paths, tmp_path / "out", tasks=["cls"], datasets=["tiny"]))
    pictures = [picture for line in lines(tmp_path / "out") for picture in line["overlays"].values()]
    assert len(set(pictures)) == 4 == len(list((tmp_path / "out/overlays").rglob("*.png")))
    assert {"overlays/x/a.png.tiny.png", "overlays/y/a.png.tiny.png.tiny.png"} <= set(pictures)


def test_a_bad_file_leaves_the_others_alone(predictor: FXPredictor, film_folder: Path, tmp_path: Path) -> None:
    data = (film_folder / "a.png").read_bytes()
    (film_folder / "aa.png").write_bytes(data[: len(data) // 2])
    (film_folder / "c.dcm").write_text("no film")
    paths = find_films([str(film_folder)]).paths
    outcomes = {o.path.name: o.problem for o in predict_files(predictor, paths, tmp_path / "out", pictures=False)}
    assert outcomes["aa.png"] == f"{film_folder / 'aa.png'}: truncated PNG (no end chunk)"
    assert str(outcomes["c.dcm"]).startswith(f"{film_folder / 'c.dcm'}: broken or truncated DICOM file")
    assert [line["file_name"] for line in lines(tmp_path / "out")] == [
        str(path) for path in paths if outcomes[path.name] is None
    ]
    assert not (tmp_path / "out/overlays").exists() and "overlays" not in lines(tmp_path / "out")[0]


def test_films_are_on_the_disk_as_they_are_done(
    predictor: FXPredictor, film_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops in the middle has whole lines; and no film is read long before its turn."""
    read: list[object] = []
    real = predictor.read
    monkeypatch.setattr(predictor, "read", lambda source: read.append(source) or real(source))
    paths = [film_folder / "a.png", *[film_folder / "b.jpg"] * 20]
    outcomes = predict_files(predictor, paths, tmp_path / "out", pictures=False)
    next(outcomes)
    assert len(lines(tmp_path / "out")) == 1 and len(table(tmp_path / "out/masks.csv")) == 3
    assert sum(isinstance(source, Path) for source in read) < 3 * predictor.batch_size
    outcomes.close()
    assert len(lines(tmp_path / "out")) == 1


def test_only_tables_of_what_was_asked(predictor: FXPredictor, film_folder: Path, tmp_path: Path) -> None:
    """A table without rows says that nothing was found; without the task there is no table."""
    list(predict_files(predictor, [film_folder / "a.png"], tmp_path / "out", tasks=["loc"], score_thresh=1.0))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["boxes.csv", "overlays", "predictions.jsonl"]
    assert table(tmp_path / "out/boxes.csv") == []


@pytest.mark.parametrize("name", ["labels.csv", "boxes.csv", "masks.csv", "overlays"])
def test_files_of_the_user_are_not_written_over(
    predictor: FXPredictor, film_folder: Path, tmp_path: Path, name: str
) -> None:
    """Many keep a labels.csv beside their films."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(FXError, match=f"already holds {name}, which would be overwritten"):
        next(predict_files(predictor, [film_folder / "a.png"], tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_wrong_use_is_refused_before_a_film_is_read(
    predictor: FXPredictor, film_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_ahead", pytest.fail)
    with pytest.raises(FXError, match=r"datasets=\['nih'\]"):
        next(predict_files(predictor, [film_folder / "a.png"], tmp_path / "out", datasets=["nih"]))
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(FXError, match="already holds predictions of an earlier call"):
        next(predict_files(predictor, [film_folder / "a.png"], tmp_path))
    assert not (tmp_path / "out").exists()
