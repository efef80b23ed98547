"""tools/demo.py as a user calls it; what it writes is tested with fx_d2/demo."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fx_d2.predictor import FXPredictor

Call = Callable[..., int]


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("demo")


@pytest.fixture
def call(tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path) -> Call:
    """Function (inputs, *further words) -> exit code; results are in `out`."""

    def call(inputs: list[Path | str], *words: str) -> int:
        fixed = [
            "--weights",
            str(tiny_checkpoint),
            "--device",
            "cpu",
            "--output",
            str(tmp_path / "out"),
            "--no-overlays",
        ]
        return tool.main([*fixed, "--input", *map(str, inputs), *words])

    return call


def documents(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_all_options_reach_the_model(
    call: Call, tiny_checkpoint: Path, film_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--which", "teacher", "--datasets", "tiny", "--tasks", "loc", "--score-thresh", "0.2", "--batch-size", "2"]
    assert call([film_folder], *words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"images predicted: 5, inputs skipped: 0; results in {tmp_path / 'out'}. Research use only.\n"
    teacher = FXPredictor.from_checkpoint(tiny_checkpoint, which="teacher", device="cpu", batch_size=2)
    paths = [str(film_folder / name) for name in ("a.png", "b.jpg", "c.dcm", "sub/IM1", "sub/a.png")]
    found = teacher(paths, datasets=["tiny"], tasks=["loc"], score_thresh=0.2)
    for one, line in zip(found, documents(tmp_path / "out"), strict=True):
        assert line["heads"] == json.loads(json.dumps(one.to_dict()["heads"])) and line["model"]["which"] == "teacher"
        assert line["file_name"] == one.file_name and line["notice"] == "research use only"


def test_skipped_files_are_lines_and_an_exit_code(
    call: Call, film_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (film_folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (film_folder / "notes.txt").write_text("x")
    assert call([film_folder, "none/*.dcm"]) == 3
    printed = capsys.readouterr()
    assert "images predicted: 5, inputs skipped: 2;" in printed.out and len(documents(tmp_path / "out")) == 5
    assert [line for line in printed.err.splitlines() if "film/s" not in line] == [
        "skipped  none/*.dcm: no such file or folder, and no match as a pattern",
        "ignored in folders, not images by name: 1 .txt",
        f"skipped  {film_folder / 'bad.png'}: not a complete PNG, JPEG, DICOM, MHA, MHD or JSRT .IMG file; convert it",
    ]


def test_nothing_readable_is_an_error_that_leaves_no_results(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"GIF")
    assert call([tmp_path / "bad.png"]) == 1
    assert capsys.readouterr().err.endswith("error: no image could be read\n") and not (tmp_path / "out").exists()
    assert call([tmp_path / "none.png"]) == 1
    assert capsys.readouterr().err.endswith("error: no image found in --input\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datasets", "nih"], "datasets=['nih']: must be a list of the model's datasets"),
        (["--datasets", "tiny_softmax", "--tasks", "seg"], "no head of ['tiny_softmax'] is trained for any of ['seg']"),
        (["--weights", "none.pth"], "none.pth does not exist"),
    ],
)
def test_wrong_use_is_one_line(
    call: Call, film_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert call([film_folder], *words) == 1
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("error: ") and not (tmp_path / "out").exists()


def test_a_used_folder_is_refused(call: Call, film_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([film_folder / "a.png"]) == 0
    assert call([film_folder / "a.png"]) == 1
    assert "already holds predictions of an earlier call" in capsys.readouterr().err


def test_an_output_that_cannot_be_made_is_refused_before_the_model_is_read(
    tool: ModuleType, film_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = film_folder / "a.png"
    for output in (film, film / "out"):
        assert tool.main(["--weights", "none.pth", "--input", str(film), "--output", str(output)]) == 1
        assert capsys.readouterr().err == f"error: output {output}: {film} is not a writable folder\n"


def test_an_interrupt_is_one_line_and_leaves_what_was_done(
    call: Call, film_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = FXPredictor.__call__

    def stopped(self: FXPredictor, images: list, **options: object) -> object:
        if (tmp_path / "out").exists():
            raise KeyboardInterrupt
        return whole(self, images, **options)

    monkeypatch.setattr(FXPredictor, "__call__", stopped)
    assert call([film_folder], "--batch-size", "2") == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; results so far are in {tmp_path / 'out'}"
    assert len(documents(tmp_path / "out")) == 2


def test_too_little_memory_is_one_line(
    call: Call, film_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: FXPredictor, *_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FXPredictor, "__call__", full)
    assert call([film_folder]) == 1
    assert "try a smaller --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["--input", "a.png"], ["--output", "out"], ["--web", "--input", "a.png", "--output", "out"],
     ["--input", "a.png", "--output", "out", "--batch-size", "0"], ["--web", "--score-thresh", "7"],
     ["--web", "--score-thresh", "nan"]],
)  # fmt: skip
def test_arguments_that_do_not_fit(tool: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--weights", "x.pth", *words])


def test_a_taken_port_is_one_line(tool: ModuleType, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert tool.main(["--weights", str(tiny_checkpoint), "--device", "cpu", "--web", "--port", port]) == 1
    assert capsys.readouterr().err.startswith("error: ")
