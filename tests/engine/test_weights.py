"""Files of many forms, and files that want to run code."""

import argparse
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fx_d2.engine.weights import load_file, read_source
from fx_d2.structures import FXError

A, B = {"a": torch.zeros(1)}, {"a": torch.ones(1)}


def saved(content: object, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("content", "student", "teacher", "default"),
    [
        ({"model": A, "teacher": {"model.a": B["a"]}, "iteration": 3}, 0, 1, ("student", "teacher")),
        ({"model": A, "teacher_model": B, "optimizer": {}, "epoch": 3}, 0, 1, ("student", "teacher")),
        ({"state_dict": A, "teacher": B, "lossMIN": [np.float64(2)]}, 0, 1, ("teacher",)),
        ({"teacher": B, "epoch": 3}, None, 1, ("teacher",)),
        ({"model": A, "epoch": 1}, 0, None, ("student",)),
        ({"state_dict": A, "epoch": 1}, 0, None, ("student",)),
        (A, 0, None, ("student",)),
    ],
)
def test_forms(tmp_path: Path, content: dict, student: int | None, teacher: int | None, default: tuple) -> None:
    source = read_source(saved(content, tmp_path / "x.pth"))
    found = {name: int(state["a"]) for name, state in source.models.items()}
    assert found == {k: v for k, v in {"student": student, "teacher": teacher}.items() if v is not None}
    assert source.default == default


def test_the_model_that_is_not_there(tmp_path: Path) -> None:
    source = read_source(saved({"model": A}, tmp_path / "x.pth"))
    assert source.pick("student") is source.models["student"]
    with pytest.raises(FXError, match=r"x\.pth holds no teacher, only: student"):
        source.pick("teacher")


def test_the_authors_teacher_gets_the_students_running_statistics(tmp_path: Path) -> None:
    names = ("n.running_mean", "n.running_var", "n.num_batches_tracked", "n.weight")
    content = {
        "model": {name: torch.tensor([5.0]) for name in names},
        "teacher_model": {name: torch.tensor([0.0]) for name in names},
    }
    source = read_source(saved(content, tmp_path / "x.pth"))
    assert [source.pick("teacher")[name].item() for name in names] == [5, 5, 5, 0]
    assert "running statistics" in source.notes[0]
    # Ours follow the student already.
    source = read_source(saved({"model": content["model"], "teacher": content["teacher_model"]}, tmp_path / "y.pth"))
    assert source.pick("teacher")["n.running_mean"].item() == 0 and source.notes == []


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "zoo.pkl"
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"model": {"w": weight, "names": ["x"]}, "__author__": "someone", "n": np.float64(1)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    state = read_source(str(path)).pick("student")
    assert set(state) == {"w"} and torch.equal(state["w"], torch.from_numpy(weight))


class _Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_code_is_not_run_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps({"model": _Code()}))
    else:
        torch.save({"model": _Code()}, path)
    with pytest.raises(FXError, match=r"needs (posix|nt)\.mkdir to unpickle, and code from a file is not executed"):
        load_file(str(path))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FXError, match=r"needs argparse\.Namespace to unpickle"):
        load_file(saved({"model": A, "args": argparse.Namespace()}, tmp_path / "y.pth"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04\x95", pickle.dumps([1, 2])])
def test_files_of_another_kind(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FXError, match=name.replace(".", r"\.")):
        load_file(str(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_anywhere_is_one_line(tmp_path: Path, zipped: bool) -> None:
    whole = io.BytesIO()
    torch.save({"model": A}, whole, _use_new_zipfile_serialization=zipped)
    for length in range(0, len(whole.getvalue()), 5):
        (tmp_path / "x.pth").write_bytes(whole.getvalue()[:length])
        with pytest.raises(FXError, match=r"x\.pth cannot be read"):
            load_file(str(tmp_path / "x.pth"))


def test_no_file_and_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(FXError, match="does not exist"):
        load_file(str(tmp_path / "none.pth"))
    with pytest.raises(FXError, match=r"holds no tensors; its keys are \['epoch', 'names'\]"):
        read_source(saved({"epoch": 3, "names": ["a"]}, tmp_path / "x.pth"))
