"""Errors a user will make: each is one clear line that names the thing, before any training."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch

from fx_d2.data import write_spec, write_split
from fx_d2.structures import DatasetSpec

ROOT = Path(__file__).resolve().parents[2]
SPEC = DatasetSpec(name="films", title="Films", cls_classes=("a", "b"))
CONFIG = """
VERSION: 2
DATASETS: {TRAIN: [films_train], TEST: [films_test]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {SIZE: [64, 64]}
MODEL:
  DEVICE: cpu
  TIMM: {NAME: swin_tiny_patch4_window7_224, KWARGS: {embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}}
SCHEDULE: {CYCLES: 1, BATCH_SIZE: {CLS: 2}}
"""

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def train_net() -> ModuleType:
    """tools/train_net.py as a module; `tools` is no package, and Detectron2's wheel has one of that name."""
    spec = importlib.util.spec_from_file_location("fx_train_net", ROOT / "tools" / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared root with the dataset films."""
    folder = tmp_path / "data" / "films"
    (folder / "images").mkdir(parents=True)
    write_spec(folder, SPEC)
    for split in ("train", "val", "test"):
        rows = []
        for i in range(4):
            name = f"{split}{i}.png"
            cv2.imwrite(str(folder / "images" / name), torch.randint(0, 255, (64, 64), dtype=torch.uint8).numpy())
            rows.append({"file_name": name, "width": 64, "height": 64, "patient_id": name, "labels": [i % 2, 1]})
        write_split(folder / f"{split}.json", spec=SPEC, split=split, image_root="images", images=rows)
    return tmp_path / "data"


@pytest.fixture
def fails(train_net: ModuleType, data: Path, tmp_path: Path) -> Fails:
    """Runs the command, which must end with an error, and gives its one line."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)

    def run(*arguments: str, opts: tuple[str, ...] = ()) -> str:
        base = (
            "--config-file",
            str(config),
            *arguments,
            "DATASETS.ROOT",
            str(data),
            "OUTPUT_DIR",
            str(tmp_path / "out"),
        )
        args = train_net.parse_args([*base, *opts])
        with pytest.raises(SystemExit) as stop:
            train_net.main(args)
        line = str(stop.value.code)
        assert line.startswith("error: ") and "\n" not in line
        return line

    return run


def test_the_setting_itself_trains(train_net: ModuleType, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    opts = ["DATASETS.ROOT", str(data), "OUTPUT_DIR", str(tmp_path / "out")]
    train_net.main(train_net.parse_args(["--config-file", str(config), *opts]))
    assert (tmp_path / "out" / "model_final.pth").is_file() and (tmp_path / "out" / "results.md").is_file()


def test_missing_root(fails: Fails, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in fails(opts=("DATASETS.ROOT", str(tmp_path / "nowhere")))


def test_missing_annotation_file(fails: Fails, data: Path) -> None:
    (data / "films" / "train.json").unlink()
    assert "train.json" in fails()


def test_unknown_dataset(fails: Fails) -> None:
    assert "flims" in fails(opts=("DATASETS.TRAIN", "('flims_train',)"))


def test_labels_that_are_not_in_the_row(fails: Fails, data: Path) -> None:
    path = data / "films" / "train.json"
    content = json.loads(path.read_text())
    content["classes"]["cls"].append("c")
    path.write_text(json.dumps(content))
    line = fails()
    assert "train.json" in line and "'c'" in line


def test_missing_image(fails: Fails, data: Path) -> None:
    (data / "films" / "images" / "train2.png").unlink()
    assert "train2.png" in fails()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_corrupt_image(fails: Fails, data: Path, tmp_path: Path, workers: str) -> None:
    path = data / "films" / "images" / "train2.png"
    path.write_bytes(path.read_bytes()[:300])
    assert "train2.png" in fails(opts=("DATALOADER.NUM_WORKERS", workers))
    told = (tmp_path / "out" / "log.txt").read_text()
    assert "train2.png" in told and "Traceback" not in told


def test_unknown_key(fails: Fails) -> None:
    assert "SOLVER.BASELR" in fails(opts=("SOLVER.BASELR", "1"))


def test_a_wrong_option_of_the_evaluation_is_found_before_the_training(fails: Fails, tmp_path: Path) -> None:
    assert "TEST.SPECIFICITY" in fails(opts=("TEST.SPECIFICITY", "90.0"))
    assert not list((tmp_path / "out").glob("*.pth"))


def test_evaluation_without_weights(fails: Fails) -> None:
    assert "MODEL.WEIGHTS" in fails("--eval-only")


def test_checkpoint_of_another_architecture(fails: Fails, tmp_path: Path) -> None:
    torch.save({"model": {"backbone.stem.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    line = fails("--eval-only", opts=("MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    assert "other.pth" in line and "architecture" in line
    line = fails(opts=("MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    assert "other.pth" in line and "architecture" in line


def test_empty_split(fails: Fails, data: Path) -> None:
    path = data / "films" / "train.json"
    content = json.loads(path.read_text())
    content["images"] = content["annotations"] = []
    path.write_text(json.dumps(content))
    line = fails()
    assert "train.json" in line or "films_train" in line


def test_cuda_without_a_gpu(fails: Fails) -> None:
    assert "MODEL.DEVICE" in fails(opts=("MODEL.DEVICE", "cuda"))


def test_a_run_is_not_overwritten(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_0000007.pth").write_bytes(b"")
    assert "model_0000007.pth" in fails() and "damaged" in fails("--resume")


def test_the_command_starts_as_many_processes_as_asked_for(
    train_net: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    calls: list[tuple] = []
    monkeypatch.setattr(train_net, "launch", lambda *arguments: calls.append(arguments))
    train_net.start(["--config-file", str(config), "--num-gpus", "2"])
    [(main, args, device)] = calls
    assert main is train_net.main and (args.num_gpus, args.dist_url, device) == (2, "auto", "cpu")
    with pytest.raises(SystemExit, match="error: .*nowhere.yaml does not exist"):
        train_net.start(["--config-file", str(tmp_path / "nowhere.yaml")])


def test_output_folder_that_cannot_be_written(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "OUTPUT_DIR" in fails(opts=("OUTPUT_DIR", str(tmp_path / "file" / "out")))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def _start(train_net: ModuleType, data: Path, tmp_path: Path, *arguments: str, opts: tuple[str, ...] = ()) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    base = ["DATASETS.ROOT", str(data), "OUTPUT_DIR", str(tmp_path / "out")]
    train_net.start(["--config-file", str(config), *arguments, *base, *opts])


def test_print_schedule_prints_and_leaves_nothing(
    train_net: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "films" / "images")  # no image is read
    options = ("MODEL.DEVICE", "cuda", "SCHEDULE.CYCLES", "7")  # and no GPU needed
    _start(train_net, data, tmp_path, "--print-schedule", "--num-gpus", "8", opts=options)
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].split()[:4] == ["1", "films", "cls", "release"]
    assert "4        2  100.0 %" in printed and "7 cycles, 14 iterations" in printed
    assert not (tmp_path / "out").exists()


def test_print_schedule_tells_of_errors_in_one_line(train_net: ModuleType, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: SCHEDULE\.ORDER is 'random'"):
        _start(train_net, data, tmp_path, "--print-schedule", opts=("SCHEDULE.ORDER", "random"))
    with pytest.raises(SystemExit, match="2"):
        _start(train_net, data, tmp_path, "--print-schedule", "--dry-run")
    with pytest.raises(SystemExit, match="2"):
        _start(train_net, data, tmp_path, "--eval-only", "--dry-run")


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    return {str(path): path.read_bytes() for path in files}


def test_dry_run_leaves_a_log_and_nothing_else(train_net: ModuleType, data: Path, tmp_path: Path) -> None:
    _start(train_net, data, tmp_path, "--dry-run")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.txt"]
    told = (tmp_path / "out" / "log.txt").read_text()
    assert "dry run, nothing saved" in told and "s/step" in told and "for SCHEDULE.CYCLES 1," in told


def test_dry_run_of_a_run_that_is_there_changes_nothing(
    train_net: ModuleType, data: Path, tmp_path: Path, fails: Fails
) -> None:
    _start(train_net, data, tmp_path)
    out = tmp_path / "out"
    (out / "model_0000009.pth").write_bytes(b"damaged")
    (out / "model_0000010.pth.tmp").write_bytes(b"left over")
    before = _content(out)
    assert "model_0000009.pth" in fails("--dry-run")
    _start(train_net, data, tmp_path, "--dry-run", "--resume")
    assert "had other settings: SOLVER.BASE_LR" in fails("--dry-run", "--resume", opts=("SOLVER.BASE_LR", "1.0"))
    assert _content(out) == before


def test_dry_run_finds_what_a_training_would(fails: Fails, data: Path) -> None:
    path = data / "films" / "images" / "train3.png"
    path.write_bytes(path.read_bytes()[:300])
    assert "train3.png" in fails("--dry-run")
