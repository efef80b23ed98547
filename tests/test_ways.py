"""Every way to train: each config is built, begun from a checkpoint of pretraining, and stepped on drawn datasets."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from fx_d2 import modeling  # noqa: F401  registers the model
from fx_d2.config import add_fx_config
from fx_d2.data import register_datasets
from fx_d2.engine import FXTrainer
from fx_d2.engine.checkpoint import FXCheckpointer, class_lists
from fx_d2.modeling import EMATeacher
from fx_d2.structures import HEAD_COMPONENTS, FXError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "projects" / "FoundationX" / "configs"
WAYS = sorted(
    path for part in ("baseline", "organs", "finetune", "fewshot") for path in (CONFIGS / part).glob("*.yaml")
)
NEEDED = "chexpert,nih_shenzhen,tbx11k,candid_ptx,chestx_det,vindr_organs,vindr_local,jsrt"

Load = Callable[..., CfgNode]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets that the configs name, drawn small and prepared by the scripts for the real ones."""
    root = tmp_path_factory.mktemp("ways")
    sys.path.insert(0, str(ROOT / "datasets"))
    try:
        prepare = importlib.import_module("prepare_synthetic")
        counts = ["--size", "96", "--train", "5", "--val", "2", "--test", "2"]
        assert prepare.main(["--output", str(root), "--seed", "3", *counts, "--datasets", NEEDED]) == 0
    finally:
        sys.path.remove(str(ROOT / "datasets"))
    return root


@pytest.fixture
def load(world: Path, tmp_path: Path) -> Load:
    """Function (file, KEY, VALUE, ...) -> its config with a tiny model, one short cycle, and datasets registered."""

    def make(path: Path, *opts: str) -> CfgNode:
        cfg = get_cfg()
        add_fx_config(cfg)
        cfg.merge_from_file(str(path))
        cfg.DATASETS.ROOT, cfg.OUTPUT_DIR, cfg.SEED = str(world), str(tmp_path / "run"), 5
        cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.SIZE, cfg.MODEL.DEVICE = 0, [64, 64], "cpu"
        cfg.MODEL.TIMM.NAME = "swin_tiny_patch4_window7_224"
        small = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
        cfg.MODEL.TIMM.KWARGS = CfgNode(small, new_allowed=True)
        small = {"HIDDEN_DIM": 32, "NUM_HEADS": 2, "FFN_DIM": 32, "ENC_LAYERS": 1, "DEC_LAYERS": 2, "DN_NUMBER": 4}
        cfg.MODEL.LOC.update(small | {"NUM_QUERIES": 8, "NUM_SELECT": 8})
        cfg.MODEL.SEG.update({"DIM": 16, "POOL_BINS": [1, 2]})
        cfg.SCHEDULE.update({"CYCLES": 1, "ITERS_PER_PASS": 1, "BATCH_SIZE": CfgNode({"CLS": 4, "LOC": 4, "SEG": 4})})
        cfg.DATASETS.FEW_SHOT.IMAGES = min(cfg.DATASETS.FEW_SHOT.IMAGES, 3)
        cfg.merge_from_list(list(opts))
        register_datasets(cfg)
        cfg.freeze()
        return cfg

    return make


@pytest.fixture
def pretrained(load: Load, tmp_path: Path) -> Path:
    """A checkpoint of a pretraining on three datasets: a random student and another random teacher."""
    rows = "('tbx11k_train','candid_ptx_train','chestx_det_train')"
    cfg = load(CONFIGS / "pretrain" / "swin_b_cyclic.yaml", "DATASETS.TRAIN", rows, "DATASETS.TEST", "()")
    torch.manual_seed(0)
    student, teacher = build_model(cfg), EMATeacher(build_model(cfg))
    FXCheckpointer(student, str(tmp_path), teacher=teacher).save("fx", classes=class_lists(student))
    return tmp_path / "fx.pth"


def state_of(trainer: FXTrainer) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def name_of(path: Path) -> str:
    """Folder and name of a config."""
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.parametrize("path", WAYS, ids=name_of)
def test_a_way_moves_what_it_trains_and_nothing_else(path: Path, load: Load, pretrained: Path) -> None:
    cfg = load(path, "MODEL.WEIGHTS", str(pretrained))
    trainer = FXTrainer(cfg)
    trainer.resume_or_load(resume=False)
    before = state_of(trainer)
    if trainer.teacher is not None:
        theirs = trainer.teacher.model.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in trainer.model.state_dict().items())
    trainer.train()
    phases = trainer.schedule.phases
    assert trainer.schedule.total == len(phases)
    # Of each task in use the head; and as many passes as the tasks have rows.
    [spec] = trainer.model.specs.values()
    assert {phase.task for phase in phases} == set(spec.tasks) <= set(cfg.DATASETS.TASKS)
    for task, part in HEAD_COMPONENTS.items():
        assert list(getattr(trainer.model, part)) == ([spec.name] if task in spec.tasks else [])
    learning = {part for phase in phases for part in phase.trainable}
    moved = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in moved} == learning
    assert ("head_only" in path.name) == all(phase.mode == "lock" for phase in phases)
    # Student and teacher of a baseline are one; only the joint way has both.
    assert (trainer.teacher is not None) == (path.parent.name == "organs")


@pytest.mark.parametrize("path", [path for path in WAYS if path.parent.name in ("finetune", "fewshot")], ids=name_of)
def test_fine_tuning_begins_from_student_or_teacher(path: Path, load: Load, pretrained: Path) -> None:
    stored = torch.load(pretrained, weights_only=True)
    heads = tuple(f"{part}." for part in HEAD_COMPONENTS.values())
    states = {"": stored["model"], "teacher": {k.removeprefix("model."): v for k, v in stored["teacher"].items()}}
    for which, state in states.items():
        trainer = FXTrainer(load(path, "MODEL.WEIGHTS", str(pretrained), "MODEL.WEIGHTS_FROM", which))
        trainer.resume_or_load(resume=False)
        for key, value in trainer.model.state_dict().items():
            if not key.startswith(heads):
                assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("task", HEAD_COMPONENTS)
def test_a_head_alone_learns_without_a_graph_of_the_rest(task: str, load: Load, pretrained: Path) -> None:
    trainer = FXTrainer(load(CONFIGS / "finetune" / f"{task}_head_only.yaml", "MODEL.WEIGHTS", str(pretrained)))
    trainer.resume_or_load(resume=False)
    seen = []

    def look(module: torch.nn.Module, inputs: object, output: dict[str, torch.Tensor]) -> None:
        seen.extend(value.requires_grad for value in output.values())

    trainer.model.backbone.register_forward_hook(look)
    trainer.train()
    assert seen and not any(seen)
    head = HEAD_COMPONENTS[task]
    stepped = {name for name, p in trainer.model.named_parameters() if p in trainer.optimizer.state}
    assert stepped and {name.split(".")[0] for name in stepped} == {head}


def test_fewer_images_than_a_batch_train_and_another_draw_is_another_run(load: Load, pretrained: Path) -> None:
    few = CONFIGS / "fewshot" / "jsrt_clavicles.yaml"
    cfg = load(few, "MODEL.WEIGHTS", str(pretrained))
    trainer = FXTrainer(cfg)
    assert trainer.data.sizes == {("jsrt", "seg"): 3} and trainer.schedule.steps == (1,)
    assert trainer.model.specs["jsrt"].seg_classes == ("Clavicles",)
    trainer.resume_or_load(resume=False)
    trainer.train()
    stored = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
    assert len(stored["datasets"]["jsrt_train"]["drawn"]) == 3
    other = FXTrainer(load(few, "MODEL.WEIGHTS", str(pretrained), "DATASETS.FEW_SHOT.SEED", "1"))
    with pytest.raises(FXError, match=r"--resume.*DATASETS.FEW_SHOT.SEED was 0 and is now 1"):
        other.resume_or_load(resume=True)


def test_too_few_images_are_one_clear_error(load: Load) -> None:
    with pytest.raises(FXError, match="FEW_SHOT.IMAGES is 24: 'jsrt' has 5 training images annotated for seg"):
        FXTrainer(load(CONFIGS / "fewshot" / "jsrt_clavicles.yaml", "DATASETS.FEW_SHOT.IMAGES", "24"))


def test_missing_weights_are_one_clear_error(load: Load) -> None:
    trainer = FXTrainer(load(CONFIGS / "finetune" / "full.yaml"))
    with pytest.raises(FXError, match="output/fx/model_final.pth does not exist: check the path .MODEL.WEIGHTS"):
        trainer.resume_or_load(resume=False)
