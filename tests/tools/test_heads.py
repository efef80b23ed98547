"""tools/heads.py as a user calls it."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fx_d2.data import write_spec
from fx_d2.engine.bundle import read_bundle
from fx_d2.structures import DatasetSpec

OWN = DatasetSpec(name="own", title="Own", cls_classes=("a", "b"), loc_classes=("a",))


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("heads")


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A dataset.yaml."""
    (tmp_path / "own").mkdir()
    write_spec(tmp_path / "own", OWN)
    return str(tmp_path / "own" / "dataset.yaml")


def test_a_list_says_what_each_head_is(
    tool: ModuleType, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tiny_checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tiny_checkpoint}: student and teacher"
    assert [line.split()[0] for line in lines[1:]] == ["cls_heads.tiny", "cls_heads.tiny_softmax", "loc_decoders.tiny",
                                                      "seg_heads.tiny"]  # fmt: skip
    assert lines[1].split(maxsplit=3)[1:] == [str(128 * 3 + 3), "trained", "mass, left lung, right lung"]


def test_dropped_and_added_heads_are_named_and_the_rest_is_bit_equal(
    tool: ModuleType, tiny_checkpoint: Path, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model.pth"
    words = [str(tiny_checkpoint), "--drop", "tiny_softmax", "tiny/seg", "--add", own, "--output", str(out)]
    assert tool.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[1:] == ["cls_heads.tiny,", "loc_decoders.tiny,", "loc_encoder"]
    assert said[1] == "created  cls_heads.own, loc_decoders.own"
    assert said[2] == "dropped  cls_heads.tiny_softmax, seg_heads.tiny, seg_decoder" and said[3] == f"written  {out}"
    old, new = read_bundle(tiny_checkpoint), read_bundle(out)
    gone = ("cls_heads.tiny_softmax.", "seg_heads.", "seg_decoder.")
    for which, state in old.states.items():
        for key, value in state.items():
            assert key.startswith(gone) != (key in new.states[which])
            assert key.startswith(gone) or torch.equal(new.states[which][key], value)
    assert [spec.name for spec in new.specs] == ["tiny", "own"] and new.specs[0].tasks == ("cls", "loc")
    assert new.cfg.DATASETS.TRAIN == ("tiny_train", "own_train")
    assert tool.main([str(out)]) == 0
    assert "loc_decoders.own" in (listed := capsys.readouterr().out) and listed.count("untrained") == 2


def test_keep_is_the_other_way_to_say_it(tool: ModuleType, tiny_checkpoint: Path, own: str, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a.pth"), str(tmp_path / "b.pth")
    assert tool.main([str(tiny_checkpoint), "--keep", "tiny/loc", "--output", a]) == 0
    assert [(s.name, s.tasks) for s in read_bundle(a).specs] == [("tiny", ("loc",))]
    assert tool.main([str(tiny_checkpoint), "--keep", "--add", own, "rsna_pneumonia", "--output", b]) == 0
    bundle = read_bundle(b)
    assert [s.name for s in bundle.specs] == ["own", "rsna_pneumonia"] and len(bundle.untrained) == 4
    shared = [k for k in bundle.states["student"] if k.startswith("loc_encoder")]
    old = read_bundle(tiny_checkpoint).states["student"]
    assert shared and all(torch.equal(bundle.states["student"][k], old[k]) for k in shared)


def test_a_row_of_the_same_name_replaces_only_what_differs(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = read_bundle(tiny_checkpoint).specs[0]
    (tmp_path / "tiny").mkdir()
    row = DatasetSpec(name="tiny", title="T", cls_classes=tiny.cls_classes, loc_classes=("nodule",))
    write_spec(tmp_path / "tiny", row)
    out = str(tmp_path / "c.pth")
    assert tool.main([str(tiny_checkpoint), "--add", str(tmp_path / "tiny/dataset.yaml"), "--output", out]) == 0
    said = capsys.readouterr().out
    assert "created  loc_decoders.tiny\n" in said and "cls_heads.tiny," in said.splitlines()[0]


def test_the_seed_decides_the_new_weights(tool: ModuleType, tiny_checkpoint: Path, own: str, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = str(tmp_path / f"{name}.pth")
        assert tool.main([str(tiny_checkpoint), "--add", own, "--seed", seed, "--output", out]) == 0
        weights.append(read_bundle(out).states["teacher"]["cls_heads.own.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drop", "tyni"], "tyni: no such head in .*; it has tiny/cls, tiny/loc, tiny/seg, tiny_softmax/cls"),
        (["--drop", "tiny_softmax/loc"], "tiny_softmax/loc: no such head"),
        (["--drop", "tiny", "tiny_softmax"], "at least one dataset"),
        (["--add", "nowhere"], r"--add nowhere: neither a file nor a row of the dataset table \(chexpert"),
    ],
)
def test_wrong_names_are_one_line(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str],
    message: str,
) -> None:  # fmt: skip
    assert tool.main([str(tiny_checkpoint), *words, "--output", str(tmp_path / "x.pth")]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1 and not (tmp_path / "x.pth").exists()


def test_a_place_that_cannot_be_written_is_one_line(
    tool: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = [str(tiny_checkpoint), "--drop", "tiny/seg", "--output", str(tmp_path / "file" / "x.pth")]
    assert tool.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: checkpoint {words[-1]} could not be written") and error.count("\n") == 1


def test_nothing_is_written_by_accident(
    tool: ModuleType, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny_checkpoint.read_bytes()
    assert tool.main([str(tiny_checkpoint), "--drop", "tiny"]) == 1
    assert tool.main([str(tiny_checkpoint), "--drop", "tiny", "--output", str(tiny_checkpoint)]) == 1
    assert tool.main([str(tiny_checkpoint), "--output", "x.pth"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert ["is missing" in lines[0], "already exists" in lines[1], "nothing to change" in lines[2]] == [True] * 3
    assert tiny_checkpoint.read_bytes() == before
