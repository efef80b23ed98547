"""Every config under projects/: it loads, says only what it must, and gives the model it promises."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from fx_d2 import modeling  # noqa: F401  registers the model
from fx_d2.config import add_fx_config
from fx_d2.data import PRETRAINING, register_datasets, write_spec
from fx_d2.data.catalog import split_name
from fx_d2.data.table import BY_NAME
from fx_d2.engine.schedule import build_cycle
from fx_d2.structures import COMPONENTS, DatasetSpec, specs_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "projects").glob("*/configs/**/*.yaml"))
FOUNDATION_X = ROOT / "projects" / "FoundationX" / "configs"
OWN_CLASSES = ("a", "b")


def load(path: Path) -> CfgNode:
    """The config of a file, on the CPU and without a download."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    if "pretrained" in cfg.MODEL.TIMM.KWARGS:
        cfg.MODEL.TIMM.KWARGS.pretrained = False
    return cfg


def register(cfg: CfgNode, root: Path) -> tuple[DatasetSpec, ...]:
    """Register what a config names with empty annotation files: they are read only when a split is asked for."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        row, split = split_name(name)
        (root / row).mkdir(exist_ok=True)
        (root / row / f"{split}.json").touch()
        if row not in BY_NAME:
            own = {"cls_classes": OWN_CLASSES, "loc_classes": OWN_CLASSES, "seg_classes": OWN_CLASSES}
            write_spec(root / row, DatasetSpec(name=row, title=row, **own))
    cfg.DATASETS.ROOT = str(root)
    register_datasets(cfg)
    return specs_of(cfg.DATASETS.TRAIN)


def build_without_memory(cfg: CfgNode) -> torch.nn.Module:
    """The model on the meta device: its shapes, without its numbers."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_model_has_the_heads_of_its_datasets(path: Path, tmp_path: Path) -> None:
    cfg = load(path)
    specs = register(cfg, tmp_path)
    model = build_without_memory(cfg)
    assert {name for name, _ in model.named_children()} <= set(COMPONENTS)
    for part, task in (("cls_heads", "cls"), ("loc_decoders", "loc"), ("seg_heads", "seg")):
        assert list(getattr(model, part)) == [spec.name for spec in specs if task in spec.tasks]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_leaf_states_only_what_differs(path: Path) -> None:
    """A leaf repeats no value of its base, except in recipes, which state the paper's numbers in full."""
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "_BASE_" not in text or path.parent.name == "pretrain":
        return
    base, leaf = load(path.parent / text.pop("_BASE_")), load(path)

    def repeated(node: dict, below: CfgNode, here: CfgNode, prefix: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            if isinstance(value, dict) and key in below and isinstance(below[key], CfgNode):
                found += repeated(value, below[key], here[key], f"{prefix}{key}.")
            elif key in below and below[key] == here[key]:
                found.append(prefix + key)
        return found

    text.get("MODEL", {}).pop("DEVICE", None)  # `load` sets it
    assert not repeated(text, base, leaf)


def test_base_is_the_papers_table(tmp_path: Path) -> None:
    cfg = load(FOUNDATION_X / "base.yaml")
    specs = register(cfg, tmp_path)
    assert [spec.name for spec in specs] == [spec.name for spec in PRETRAINING]
    assert specs_of(cfg.DATASETS.TEST) == specs
    phases = build_cycle(specs, cfg.SCHEDULE.STRATEGY)
    assert len(phases) == 29
    assert len({(phase.dataset, phase.task) for phase in phases}) == 20


def test_base_is_the_papers_architecture(tmp_path: Path) -> None:
    """The reference has as many parameters in its trunk and in its classification heads."""
    cfg = load(FOUNDATION_X / "base.yaml")
    register(cfg, tmp_path)
    model = build_without_memory(cfg)
    assert sum(p.numel() for p in model.backbone.trunk.parameters()) == 86_741_176
    assert sum(p.numel() for p in model.cls_heads.parameters()) == 70_725


def test_pretraining_recipe_is_the_papers() -> None:
    cfg = load(FOUNDATION_X / "pretrain" / "swin_b_cyclic.yaml")
    assert (cfg.SCHEDULE.CYCLES, *cfg.SCHEDULE.BATCH_SIZE.values()) == (150, 24, 24, 24)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == ("adamw", 1e-4, 1e-4)
    assert cfg.SOLVER.BASE_LR * cfg.SOLVER.LR_FACTOR.BACKBONE == pytest.approx(1e-5)
    assert cfg.SOLVER.BASE_LR * cfg.SOLVER.LR_FACTOR.CLS_HEADS == pytest.approx(1e-5)
    assert dict(cfg.SOLVER.CLIP_NORM) == {"CLS": 0.0, "LOC": 0.1, "SEG": 0.0}
    assert (cfg.MODEL.TEACHER.MOMENTUM, cfg.MODEL.TEACHER.CONSISTENCY) == (0.8, 0.5)
    assert (cfg.MODEL.LOC.NUM_QUERIES, list(cfg.INPUT.SIZE)) == (900, [224, 224])


def test_foundation_x_plus_and_organs_differ_as_their_code_does() -> None:
    """Foundation X+ only resizes for classification and runs for 2000 slots; a Dice for each class in both."""
    plus = load(FOUNDATION_X / "pretrain" / "foundation_x_plus.yaml")
    assert (plus.SCHEDULE.CYCLES, plus.INPUT.CLS.CROP_AREA, plus.MODEL.SEG.DICE) == (100, 1.0, "class")
    assert (plus.MODEL.LOC.SHARED_DECODER, plus.MODEL.SEG.REGION.WEIGHT) == (True, 0.5)
    assert [(row["task"], row["share"]) for row in plus.SCHEDULE.STRATEGY] == [
        (task, share) for task in ("cls", "loc", "seg") for share in (0.5, 1.0)
    ]
    assert load(FOUNDATION_X / "organs" / "vindr_organs.yaml").MODEL.SEG.DICE == "class"


def test_unknown_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("SCHEDULE: {CYCELS: 1}\n")
    with pytest.raises(KeyError, match="CYCELS"):
        load(tmp_path / "wrong.yaml")
