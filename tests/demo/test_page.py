"""The page in a real browser, served by the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest

from fx_d2.predictor import FXPredictor

if TYPE_CHECKING:
    from tests.demo.conftest import Browser

ROOT = Path(__file__).resolve().parents[2]
READY = "document.querySelectorAll('#choices input').length === 2"
SHOWN = "!document.querySelector('#result').hidden && !document.querySelector('main[aria-busy]')"


@pytest.fixture
def address(tiny_checkpoint: Path) -> Iterator[str]:
    """Of `tools/demo.py --web`; at the end Ctrl-C must end it in good order."""
    command = [
        sys.executable,
        "tools/demo.py",
        "--weights",
        str(tiny_checkpoint),
        "--device",
        "cpu",
        "--web",
        "--port",
        "0",
    ]
    # A shell's background jobs ignore Ctrl-C, and hand that on to what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("http://127.0.0.1:") and "Research use only." in line
            yield line.split()[0]
            assert server.poll() is None, "the server has ended by itself"
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
            signal.signal(signal.SIGINT, before)


COLOURED = """(() => {
    const c = document.getElementById("canvas");
    const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
        const [r, g, b] = data.slice(i, i + 3);
        count += Math.max(r, g, b) - Math.min(r, g, b) > 8;
    }
    return count;
})()"""
"""How many pixels of the canvas are not grey."""

ROWS = "[...document.querySelectorAll('#labels tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"


def set_value(browser: Browser, name: str, value: str, event: str) -> None:
    """Of a control, as a user sets it."""
    browser.run(f"document.getElementById('{name}').value = '{value}'")
    browser.run(f"document.getElementById('{name}').dispatchEvent(new Event('{event}'))")


def test_a_film_is_dropped_and_its_findings_appear(
    browser: Browser, address: str, film_folder: Path, tiny_checkpoint: Path
) -> None:
    predictor = FXPredictor.from_checkpoint(tiny_checkpoint, device="cpu")
    head = predictor(film_folder / "c.dcm")["tiny"]
    assert head.labels is not None and head.scores is not None
    browser.open(address)
    browser.wait(READY)
    assert browser.run("document.querySelector('.notice').offsetHeight") > 0
    browser.drop(film_folder / "c.dcm", 300, 100)
    browser.wait(SHOWN)
    assert browser.run("document.getElementById('status').textContent") == "c.dcm: 90 × 90 pixels"
    labels = [[name, "", f"{value:.2f}"] for name, value in head.labels.items()]
    assert browser.run(ROWS) == labels

    def counted() -> int:
        texts = browser.run("[...document.querySelectorAll('.count')].map((e) => e.textContent)")
        return sum(int(text.split()[0]) for text in texts if "box" in text)

    set_value(browser, "threshold", "0.05", "input")
    assert counted() == len(head.scores) > 0
    middle = f"{sorted(head.scores)[len(head.scores) // 2]:.2f}"
    set_value(browser, "threshold", middle, "input")
    assert counted() == (head.scores >= float(middle)).sum()
    drop = "document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))"
    assert browser.run(f"({drop}, document.querySelector('main').hasAttribute('aria-busy'))") is False, "text, no file"
    asked = [
        e
        for e in browser.events
        if e["method"] == "Network.requestWillBeSent" and "/predict" in e["params"]["request"]["url"]
    ]
    assert len(asked) == 1, "the threshold does not ask the model"


def test_what_is_drawn_can_be_switched_and_saved(browser: Browser, address: str, film_folder: Path) -> None:
    browser.open(address)
    browser.wait(READY)
    browser.choose("#file", film_folder / "a.png")
    browser.wait(SHOWN)
    set_value(browser, "threshold", "0.05", "input")
    assert browser.run(COLOURED) > 1000
    browser.run("document.querySelectorAll('#classes input').forEach((box) => box.click())")
    assert browser.run(COLOURED) == 0, "every class is switched off"
    browser.run("document.querySelector('#classes input').click()")
    assert browser.run(COLOURED) > 100, "one class is switched on again"
    browser.run("document.getElementById('overlay').click()")
    assert browser.run(COLOURED) == 0, "the film alone"
    browser.run("document.getElementById('save-json').click()")
    browser.run("document.getElementById('save-picture').click()")
    files = [browser.folder / name for name in ("a.png.json", "a.png.tiny.png")]
    browser.wait_for_files(files)
    assert json.loads(files[0].read_text())["notice"] == "research use only"
    assert cv2.imread(str(files[1])).shape[0] > 1200, "the film, enlarged, and the line below it"


def test_a_saved_picture_says_what_is_drawn_in_it(browser: Browser, address: str, film_folder: Path) -> None:
    """What was switched off is not taken for not found, and a head without boxes has no threshold of boxes."""
    browser.open(address)
    browser.wait(READY)
    browser.choose("#file", film_folder / "a.png")
    browser.wait(SHOWN)
    browser.run("""window.written = [], window.real = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
            written.push(text);
            return real.call(this, text, ...rest);
        }""")

    def saved() -> str:
        browser.run("document.getElementById('save-picture').click()")
        return str(browser.run("written.at(-1)"))

    start = "Research use only; not for clinical decisions.   Tiny   student   "
    set_value(browser, "threshold", "0.05", "input")
    assert saved() == f"{start}boxes from 0.05   a.png"
    browser.run("document.querySelectorAll('#classes input').forEach((box) => box.click())")
    assert saved() == f"{start}boxes from 0.05   without left lung, right lung, heart   a.png"
    browser.run("document.getElementById('overlay').click()")
    assert saved() == f"{start}no boxes, no masks   a.png"
    set_value(browser, "dataset", "tiny_softmax", "change")
    assert saved() == f"{start.replace('Tiny', 'Tiny softmax')}a.png"


def test_errors_heads_keys_and_narrow_windows(browser: Browser, address: str, film_folder: Path) -> None:
    (film_folder / "bad.png").write_bytes((film_folder / "a.png").read_bytes()[:-20])
    browser.resize(360, 740)
    browser.open(address)
    browser.wait(READY)
    browser.choose("#file", film_folder / "bad.png")
    assert browser.wait("document.getElementById('error').textContent") == "bad.png: truncated PNG (no end chunk)"
    assert browser.run("document.getElementById('stage').hidden && document.getElementById('result').hidden")
    browser.run("document.querySelector('#choices input').click()")
    browser.choose("#file", film_folder / "b.jpg")
    browser.wait(SHOWN)
    assert browser.run("document.getElementById('error').textContent") == ""
    assert browser.run("[...document.getElementById('dataset').options].map((o) => o.value)") == ["tiny_softmax"]
    assert browser.run("document.documentElement.scrollWidth") <= 360, "no sideways scrolling"
    browser.run("document.getElementById('heads').open = true")
    reached = set()
    for _ in range(20):
        browser.press("Tab", 9)
        reached.add(browser.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"file", "SUMMARY", "all", "none", "again", "dataset", "overlay", "save-json", "save-picture"} <= reached
    broken = [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
    elsewhere = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert not broken and all(url.startswith((address, "data:", "blob:")) for url in elsewhere)
