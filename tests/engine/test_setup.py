import argparse
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from fx_d2.engine.setup import INSTEAD, build_cfg, check_device, setup_cfg
from fx_d2.structures import FXError


def test_file_then_overrides(config_file: Path) -> None:
    cfg = build_cfg(str(config_file), ["SOLVER.BASE_LR", "0.5"])
    assert cfg.MODEL.TIMM.KWARGS.embed_dim == 16 and cfg.SOLVER.BASE_LR == 0.5


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.LOC.QUERIES", "3"], "MODEL.LOC.QUERIES"),
        (["MODEL.LOC.NUM_QUERIES", "many"], "NUM_QUERIES"),
        (["SEED"], "Override list has odd length"),
        (["SEED", "3", "--resume"], "--resume .* before"),
        (["SEED.X", "3"], "SEED.X 3: not a mapping .* a key below one that has a value"),
        (["SOLVER.BASE_LR", "None"], "SOLVER.BASE_LR has no value"),
        (["SOLVER.IMS_PER_BATCH", "4"], "SOLVER.IMS_PER_BATCH .* no effect here: use SCHEDULE.BATCH_SIZE"),
    ],
)
def test_wrong_overrides_are_named(config_file: Path, opts: list[str], message: str) -> None:
    with pytest.raises(FXError, match=message):
        build_cfg(str(config_file), opts)


def test_what_detectron2_s_keys_are_replaced_by_is_there(config_file: Path) -> None:
    cfg = build_cfg(str(config_file), [])
    for key, ours in INSTEAD.items():
        attrgetter(key)(cfg)
        assert attrgetter(ours.split()[0].rstrip(",").replace("{CLS,LOC,SEG}", "CLS"))(cfg) is not None


@pytest.mark.parametrize("text", ["MODEL: {HEADS: 3}", "MODEL: [", "SEED: many"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"VERSION: 2\n{text}\n")
    with pytest.raises(FXError, match=r"wrong\.yaml"):
        build_cfg(str(path), [])
    with pytest.raises(FXError, match="does not exist"):
        build_cfg(str(tmp_path / "none.yaml"), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a mapping"),
        ("- SEED", "not a mapping"),
        ("SEED", "not a mapping"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml"),
        ("_BASE_: wrong.yaml", "recursion"),
    ],
)
def test_a_file_of_the_wrong_structure_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(FXError, match=rf"wrong\.yaml: .*{message}"):
        build_cfg(str(path), [])


@pytest.mark.parametrize("device", ["gpu", "", "cuda:first"])
def test_a_word_that_is_no_device(device: str) -> None:
    with pytest.raises(FXError, match=f"MODEL.DEVICE is '{device}': set it to cpu, cuda or cuda:N"):
        check_device(device)


def test_cuda_without_a_gpu() -> None:
    with pytest.raises(FXError, match="MODEL.DEVICE cpu"):
        check_device("cuda")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        check_device(device)
    with pytest.raises(FXError, match="cuda:2, but torch sees 2 GPUs"):
        check_device("cuda:2")


def test_the_gpu_that_is_named_is_the_current_one(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("fx_d2.engine.setup.register_datasets", lambda cfg: None)
    for device in ("cpu", "cuda", "cuda:1"):
        setup_cfg(argparse.Namespace(config_file=str(config_file), opts=["MODEL.DEVICE", device]))
    assert chosen == ["cuda:1"]
