"""A small predictor, and a headless Chromium driven through its own debugging pipe: no driver or package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fx_d2.predictor import FXPredictor

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120
"""Seconds until a page that does not become as expected is an error."""

# Chromium reads commands from descriptor 3 and answers on descriptor 4.
_START = """import fcntl, os, sys
r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(r, 3), os.dup2(w, 4)
os.execv(sys.argv[3], sys.argv[3:])"""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome, else None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page; a context manager that ends the browser.

    Args:
        program: of `find_browser`.
        folder: for its profile and for downloads.
        size: of the window in pixels.
    """

    def __init__(self, program: str, folder: Path, size: tuple[int, int] = (1280, 800)) -> None:
        theirs_in, self._out = os.pipe()
        ours, theirs_out = os.pipe()
        self._in = os.fdopen(ours, "rb")
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]
        words = [
            program,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ]
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), *words],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        self._count, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._out)
        self._in.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result; RuntimeError with its error."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            data += byte
        return json.loads(data)

    def open(self, address: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; RuntimeError when it throws."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"].get("exception", {}).get("description")))
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if value := self.run(script):
                    return value
            except RuntimeError as error:
                if "has ended" in str(error):
                    raise
            time.sleep(0.1)
        raise RuntimeError(f"never true: {script}; the page says: {self.run('document.body.innerText')}")

    def wait_for_files(self, files: list[Path]) -> None:
        """Until downloads are there; Chromium gives a file its name when it is whole."""
        end = time.monotonic() + PATIENCE
        while missing := [file.name for file in files if not file.is_file()]:
            if time.monotonic() > end:
                raise RuntimeError(f"never saved: {missing}")
            time.sleep(0.1)

    def choose(self, selector: str, file: Path) -> None:
        """Put a file into a file input, as a user's choice does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def drop(self, file: Path, x: int, y: int) -> None:
        """Drag a file onto a point of the page."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int) -> None:
        """Press a key such as ("Tab", 9)."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path, full: bool = False) -> None:
        """Write what is seen as a PNG; `full`: the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))


@pytest.fixture
def tiny_checkpoint(tiny_checkpoint: Path) -> Path:
    """With boxes of middling scores, which a model that has learned nothing does not give."""
    content = torch.load(tiny_checkpoint)
    content["model"]["loc_decoders.tiny.class_head.bias"][:] = 0.0
    torch.save(content, tiny_checkpoint)
    return tiny_checkpoint


@pytest.fixture
def predictor(tiny_checkpoint: Path) -> FXPredictor:
    """Of the tiny student, two films at a time."""
    return FXPredictor.from_checkpoint(tiny_checkpoint, device="cpu", batch_size=2)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A page in a real browser, where there is one."""
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    folder = tmp_path / "browser"
    folder.mkdir()
    with Browser(program, folder) as page:
        yield page
