"""A web page to drop X-rays on: a small local server around one predictor.

Needs Flask and waitress: `pip install -e '.[web]'`. An uploaded image stays in memory for the duration of its request;
it is never written to disk, and neither its content nor its name is logged. The page loads nothing from other hosts.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from detectron2.utils.visualizer import GenericMask

from fx_d2.demo.document import NOTICE, document
from fx_d2.predictor import FXPredictor, HeadPrediction
from fx_d2.structures import FXError
from fx_d2.visualization import class_colors

try:
    from flask import Flask, Response, jsonify, request
    from flask.json.provider import DefaultJSONProvider
    from waitress.server import create_server
    from werkzeug.exceptions import BadRequest, HTTPException, UnsupportedMediaType
except ImportError as error:
    raise FXError(f"the page needs {error.name}: pip install -e '.[web]'") from None

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
"""Largest upload: 4000 x 5000 pixels of 16 bits are 40 MB uncompressed."""

LOWEST_SCORE = 0.05
"""Boxes below are not sent; the page's threshold moves above it without running the model again."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

FILM_TYPE = "application/octet-stream"
"""Content type of uploads. From another origin it triggers a CORS preflight, which this server does not allow."""

SENTENCES = {
    404: "There is no such page.",
    405: "This address does not support the method.",
    413: "The file is too large.",
}


class _Ordered(DefaultJSONProvider):
    """Keeps classes in the order of the dataset row."""

    sort_keys = False


class _Flask(Flask):
    json_provider_class = _Ordered


def create_app(
    predictor: FXPredictor,
    *,
    datasets: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    score_thresh: float = 0.3,
    max_bytes: int = MAX_BYTES,
    host: str = "127.0.0.1",
) -> Flask:
    """The page and its two endpoints.

    GET /model lists the heads. POST /predict?name=...&dataset=...&dataset=... with an image as body, of type FILM_TYPE,
    returns {"document": `document`, "film": PNG in base64, "shapes": {dataset: {class: {"path": outline as SVG path in
    original pixels, "share": fraction of the image}}}}. Bad requests get {"error": one sentence} with a 4xx status.

    Args:
        predictor: shared by all requests.
        datasets: whose heads are offered; None: all.
        tasks: as in `FXPredictor.stream`.
        score_thresh: initial threshold of the page.
        max_bytes: the largest upload.
        host: address that is served; on a loopback address, requests for any other host name are refused.

    Raises:
        FXError: the model does not have the requested datasets or tasks.
    """
    offered = list(predictor.wanted(datasets, tasks))
    app = _Flask(__name__, static_folder="page", static_url_path="/page")
    app.config.update(MAX_CONTENT_LENGTH=max_bytes)
    _guard(app, host)

    @app.get("/")
    def index() -> Response:
        return app.send_static_file("index.html")

    @app.get("/model")
    def model() -> Response:
        rows = [_describe(predictor, name) for name in offered]
        about = {"which": predictor.which, "notice": NOTICE, "max_bytes": max_bytes, "datasets": rows}
        return jsonify(about | {"lowest_score": LOWEST_SCORE, "score_thresh": max(score_thresh, LOWEST_SCORE)})

    @app.post("/predict")
    def predict() -> Response:
        if request.mimetype != FILM_TYPE:
            raise UnsupportedMediaType(f"Images must be sent as {FILM_TYPE}.")
        names = request.args.getlist("dataset") or offered
        if not set(names) <= set(offered):
            raise BadRequest("One of the requested datasets is not offered.")
        name = PurePath(request.args.get("name", "film").replace("\\", "/")).name or "film"
        film = predictor.read(request.get_data(cache=False), name=name)
        prediction = predictor(film, datasets=names, tasks=tasks, score_thresh=LOWEST_SCORE)
        shapes = {dataset: _shapes(head) for dataset, head in prediction.heads.items()}
        found = {"document": document(prediction, predictor, LOWEST_SCORE), "shapes": shapes}
        return jsonify(found | {"film": base64.b64encode(_png(film.grey)).decode("ascii")})

    return app


def _guard(app: Flask, host: str) -> None:
    """Refuse foreign host names, return errors as JSON sentences, and add HEADERS to all responses."""

    @app.before_request
    def local_name() -> None:
        # Against DNS rebinding: a foreign name resolving to this machine must not give its scripts access to the page.
        if is_loopback(host) and not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
            raise BadRequest("The page is served under this machine's names only.")

    @app.errorhandler(FXError)
    def unreadable(error: FXError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 422

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        code = error.code or 500
        sentence = "The server failed; see its log." if code >= 500 else error.description
        return jsonify(error=SENTENCES.get(code, sentence)), code

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response


def serve(app: Flask, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until KeyboardInterrupt; `ready` gets the URL. Raises OSError if the port is in use.

    On other than loopback addresses the page is open to everyone on the network, unencrypted; a warning is logged.
    """
    if not is_loopback(host):
        logger.warning("--host %s: anyone who can reach this machine can use the page; images are unencrypted", host)
    room = app.config["MAX_CONTENT_LENGTH"] + 2**16
    # Buffers larger than any request or response: waitress would write longer ones to temporary files.
    server = create_server(
        app, host=host, port=port, threads=4, ident=None, clear_untrusted_proxy_headers=True,
        max_request_body_size=room, inbuf_overflow=2 * room, outbuf_overflow=2**30,
    )  # fmt: skip
    ready(f"http://{f'[{host}]' if ':' in host else host}:{server.effective_port}")
    try:
        server.run()
    finally:
        server.close()


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _describe(predictor: FXPredictor, name: str) -> dict[str, Any]:
    spec = predictor.specs[name]
    colors = {key: "#" + "".join(f"{round(255 * c):02x}" for c in color) for key, color in class_colors(spec).items()}
    return {"name": name, "title": spec.title, "softmax": spec.cls_kind == "softmax", "colors": colors}


def _shapes(head: HeadPrediction) -> dict[str, dict[str, Any]]:
    """Class -> outline of its mask and fraction of the image it covers, for masks that are not empty."""
    pairs = zip(head.spec.seg_classes, () if head.masks is None else head.masks, strict=False)
    return {name: {"path": _path(mask), "share": float(mask.mean())} for name, mask in pairs if mask.any()}


def _path(mask: np.ndarray) -> str:
    """SVG path of the outlines of a mask (H, W), holes included, to be filled by the evenodd rule."""
    outlines = []
    for polygon in GenericMask(mask, *mask.shape).polygons:
        # Half a pixel is not visible on the page; without simplification a 3000-pixel image has megabytes of points.
        points = cv2.approxPolyDP(polygon.reshape(-1, 1, 2).astype(np.float32), 0.5, closed=True)[:, 0]
        outlines.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
    return "".join(outlines)


def _png(grey: np.ndarray) -> bytes:
    return cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
