"""The server behind the page, through Flask's test client; the page itself is driven in tests/demo/test_page.py."""

import base64
import builtins
import importlib
import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient
from pycocotools import mask as mask_utils
from werkzeug.test import TestResponse

from fx_d2.data import read_image
from fx_d2.demo import document
from fx_d2.demo.web import FILM_TYPE, LOWEST_SCORE, create_app, is_loopback
from fx_d2.predictor import FXPredictor
from fx_d2.structures import FXError
from fx_d2.visualization import class_colors


@pytest.fixture
def client(predictor: FXPredictor) -> FlaskClient:
    return create_app(predictor, max_bytes=100_000).test_client()


def post(client: FlaskClient, data: bytes, name: str = "film.png", **options: Any) -> TestResponse:
    return client.post("/predict", query_string={"name": name}, data=data, content_type=FILM_TYPE, **options)


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.dcm", "sub/IM1"])
def test_an_upload_is_answered_with_what_the_predictor_says(
    client: FlaskClient, predictor: FXPredictor, film_folder: Path, name: str
) -> None:
    path = film_folder / name
    found = predictor(predictor.read(path, name=path.name), score_thresh=LOWEST_SCORE)
    answer = post(client, path.read_bytes(), path.name)
    assert answer.status_code == 200 and answer.json is not None
    assert answer.json["document"] == json.loads(json.dumps(document(found, predictor, LOWEST_SCORE)))
    film = cv2.imdecode(np.frombuffer(base64.b64decode(answer.json["film"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(film, read_image(path))
    masks = answer.json["document"]["heads"]["tiny"]["masks"]
    shapes = answer.json["shapes"]["tiny"]
    decoded = {key: mask_utils.decode(rle).astype(bool) for key, rle in masks.items()}
    assert set(shapes) == {key for key, mask in decoded.items() if mask.any()} and shapes
    for key, shape in shapes.items():
        assert shape["share"] == pytest.approx(decoded[key].mean())
        drawn = filled(shape["path"], decoded[key].shape)
        assert (drawn != decoded[key]).mean() < 0.1, "the outline lies around the mask"


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """An SVG path of straight lines by the even-odd rule."""
    rings = [ring.removesuffix("Z").split("L") for ring in path.split("M")[1:]]
    points = [np.array([p.split() for p in ring], float).round().astype(np.int32) for ring in rings]
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, points, 1)
    return canvas.astype(bool)


def test_only_the_heads_that_are_asked_for(client: FlaskClient, predictor: FXPredictor, film_folder: Path) -> None:
    data = (film_folder / "a.png").read_bytes()
    answer = client.post("/predict?dataset=tiny_softmax", data=data, content_type=FILM_TYPE)
    assert answer.json is not None and list(answer.json["document"]["heads"]) == ["tiny_softmax"]
    narrow = create_app(predictor, datasets=["tiny"], tasks=["cls"]).test_client()
    answer = post(narrow, data)
    assert answer.json is not None and set(answer.json["document"]["heads"]["tiny"]) == {"labels"}
    refused = narrow.post("/predict?dataset=tiny_softmax", data=data, content_type=FILM_TYPE)
    assert refused.status_code == 400 and refused.json == {"error": "One of the requested datasets is not offered."}
    with pytest.raises(FXError, match="datasets="):
        create_app(predictor, datasets=["nih"])


def test_what_the_page_must_know(client: FlaskClient, predictor: FXPredictor) -> None:
    found = client.get("/model").json
    assert found is not None and found["max_bytes"] == 100_000 and found["notice"] == "research use only"
    assert [(row["name"], row["softmax"]) for row in found["datasets"]] == [("tiny", False), ("tiny_softmax", True)]
    assert list(found["datasets"][0]["colors"]) == list(class_colors(predictor.specs["tiny"]))
    assert all(len(color) == 7 and int(color[1:], 16) for color in found["datasets"][0]["colors"].values())


def test_whatever_is_wrong_is_one_sentence(client: FlaskClient, film_folder: Path) -> None:
    data = (film_folder / "a.png").read_bytes()
    wrong = {
        422: [post(client, data[:-20]), post(client, b""), post(client, b"GIF89a")],
        413: [post(client, bytes(100_001))],
        415: [client.post("/predict", data=data, content_type="text/plain"), client.post("/predict", data={"a": "b"})],
        404: [client.get("/nothing"), client.get("/page/../web.py"), client.get("/page/..%2fweb.py")],
        405: [client.get("/predict")],
    }
    for status, answers in wrong.items():
        for answer in answers:
            assert answer.status_code == status and answer.json is not None and list(answer.json) == ["error"]
            assert answer.json["error"] and "\n" not in answer.json["error"]
    assert wrong[422][0].json == {"error": "film.png: truncated PNG (no end chunk)"}
    assert wrong[413][0].json == {"error": "The file is too large."}


def test_a_fault_of_ours_is_a_sentence_too(
    predictor: FXPredictor, film_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("details that are nobody's business")

    app = create_app(predictor)
    monkeypatch.setattr(FXPredictor, "__call__", fail)
    answer = post(app.test_client(), (film_folder / "a.png").read_bytes())
    assert answer.status_code == 500 and answer.json == {"error": "The server failed; see its log."}


def test_every_answer_keeps_the_page_to_itself(client: FlaskClient, film_folder: Path) -> None:
    answers = [client.get("/"), client.get("/page/page.js"), client.get("/model"), client.get("/nothing")]
    answers.append(post(client, (film_folder / "a.png").read_bytes()))
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in answer.headers
    page = answers[0].get_data(as_text=True)
    assert answers[0].mimetype == "text/html" and "Research use only; not for clinical decisions." in page
    for file in ("/", "/page/page.js", "/page/style.css"):
        assert "http" not in client.get(file).get_data(as_text=True), "nothing is loaded from elsewhere"


def test_names_of_other_hosts_are_refused(client: FlaskClient, predictor: FXPredictor) -> None:
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        assert client.get("/model", headers={"Host": host}).status_code == 200
    assert client.get("/model", headers={"Host": "attacker.example"}).status_code == 400
    public = create_app(predictor, host="0.0.0.0").test_client()
    assert public.get("/model", headers={"Host": "hospital.example"}).status_code == 200


@pytest.mark.parametrize("name", ["../../a.png", "..\\..\\a.png", "a.png", "", "."])
def test_a_name_is_only_a_name(
    client: FlaskClient, film_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No file is opened or written for a request, and nothing of it is logged."""
    data = (film_folder / "a.png").read_bytes()
    opened: list[object] = []
    sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and watching else None)
    watching = True
    with caplog.at_level(logging.DEBUG):
        answer = post(client, data, name)
    watching = False
    assert answer.json is not None and answer.json["document"]["file_name"] in ("a.png", "film")
    assert [path for path in opened if "a.png" in str(path) or "tmp" in str(path)] == []
    assert "a.png" not in caplog.text


def test_requests_side_by_side_share_the_model(client: FlaskClient, film_folder: Path) -> None:
    data = {name: (film_folder / name).read_bytes() for name in ("a.png", "b.jpg", "c.dcm")}
    alone: dict[str, Any] = {}
    together: dict[str, Any] = {}

    def ask(name: str, answers: dict[str, Any]) -> None:
        answers[name] = post(client.application.test_client(), data[name], name).json

    # Threads for both, so that the answers differ in nothing but that requests overlap.
    for name in data:
        thread = threading.Thread(target=ask, args=(name, alone))
        thread.start()
        thread.join()
    threads = [threading.Thread(target=ask, args=(name, together)) for name in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_hosts_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.3", "hospital.example")))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("waitress"):
            raise ModuleNotFoundError("No module named 'waitress'", name="waitress")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "fx_d2.demo.web")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FXError, match=r"the page needs waitress: pip install -e '\.\[web\]'"):
        importlib.import_module("fx_d2.demo.web")
