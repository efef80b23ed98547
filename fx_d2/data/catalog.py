"""Register datasets in Detectron2's catalogs as "<row>_<split>", from the dataset table or a folder's dataset.yaml."""

from __future__ import annotations

import functools
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from fx_d2.data.annotations import SPEC_FILE, load_spec, load_split
from fx_d2.data.narrowing import narrow_records, narrow_rows
from fx_d2.data.table import BY_NAME
from fx_d2.structures import SPLITS, TASKS, DatasetSpec, FXError

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "DETECTRON2_DATASETS"
DEFAULT_ROOT = "datasets/prepared"
_PREPARE = "prepare it: see datasets/README.md (a plain folder: python datasets/prepare_folder.py SRC --output {root})"


def dataset_root(cfg: CfgNode) -> Path:
    """The folder of prepared datasets: DATASETS.ROOT, else $DETECTRON2_DATASETS, else datasets/prepared.

    Raises:
        FXError: it does not exist.
    """
    root = _root_path(cfg)
    if not root.is_dir():
        raise FXError(
            f"folder of prepared datasets {str(root)!r} not found: set DATASETS.ROOT or ${ROOT_VARIABLE}, "
            "or prepare a dataset (datasets/README.md)"
        )
    return root


def register_datasets(cfg: CfgNode) -> tuple[str, ...]:
    """Register all splits of the datasets in DATASETS.TRAIN and DATASETS.TEST; returns the registered names.

    Rows and dicts are limited to DATASETS.TASKS and DATASETS.CLASSES. Annotation files are loaded lazily. Calling it
    again, also with another root, replaces the registrations.

    Raises:
        FXError: a name that is not "<row>_<split>", an unknown dataset, a missing root or annotation file, a
            dataset.yaml that redefines the classes of a dataset in the table, or see `narrowing.narrow_rows`.
    """
    wanted = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not wanted:
        raise FXError("DATASETS.TRAIN and DATASETS.TEST are empty: name splits such as 'chexpert_train'")
    rows = dict.fromkeys(split_name(name)[0] for name in wanted)
    root = dataset_root(cfg)
    registered = _register_rows(cfg, rows, root)
    for name in wanted:
        file = Path(MetadataCatalog.get(name).json_file)
        if not file.is_file():
            raise FXError(f"{name}: annotation file {str(file)!r} not found; {_PREPARE.format(root=root)}")
    return tuple(registered)


def register_rows(cfg: CfgNode) -> None:
    """Register the datasets in DATASETS.TRAIN and DATASETS.TEST without requiring their data.

    This is enough to build the model. Custom datasets are looked up as in `register_datasets`.

    Raises:
        FXError: a name that is not "<row>_<split>", an unknown dataset, or see `narrowing.narrow_rows`.
    """
    rows = dict.fromkeys(split_name(name)[0] for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    _register_rows(cfg, rows, _root_path(cfg))


def register_spec(spec: DatasetSpec, root: str | Path) -> tuple[str, ...]:
    """Register a custom dataset with files <root>/<spec.name>/<split>.json; returns the registered names.

    Raises:
        FXError: no annotation files, or a dataset in the table has the same name and different classes.
    """
    check_own_row(spec, f"dataset {spec.name!r}")
    names = _register(spec, spec, Path(root))
    found = tuple(name for name in names if Path(MetadataCatalog.get(name).json_file).is_file())
    if not found:
        raise FXError(f"no annotation file in {str(Path(root) / spec.name)!r}; {_PREPARE.format(root=root)}")
    return found


def check_own_row(spec: DatasetSpec, where: str) -> None:
    """FXError, starting with `where`, if a dataset in the table has the same name and different classes."""
    known = BY_NAME.get(spec.name, spec)
    for task in TASKS:
        if known.classes(task) != spec.classes(task):
            raise FXError(
                f"{where}: {spec.name!r} is a built-in dataset with other {task} classes {list(known.classes(task))}; "
                "give the dataset another name (prepare_folder.py: --name)"
            )


def split_name(registered: str) -> tuple[str, str]:
    """("jsrt", "train") of "jsrt_train"; FXError for another form."""
    row, _, split = registered.rpartition("_")
    if not row or split not in SPLITS:
        raise FXError(f"dataset split {registered!r} must be '<row>_<split>' with a split of {list(SPLITS)}")
    return row, split


def evaluation_splits(cfg: CfgNode, *, training: bool) -> tuple[str, ...]:
    """The registered splits to evaluate, according to TEST.SPLIT.

    A dataset without an annotation file for that split is skipped with a warning.

    Args:
        cfg: uses DATASETS.TEST and TEST.SPLIT; call `register_datasets` first.
        training: whether this is an evaluation during training, which defaults to val.

    Raises:
        FXError: TEST.SPLIT is not a split, or no dataset has it.
    """
    split = cfg.TEST.SPLIT or ("val" if training else "")
    if not split:
        return tuple(cfg.DATASETS.TEST)
    if split not in SPLITS:
        raise FXError(f"TEST.SPLIT must be one of {list(SPLITS)} or empty, not {split!r}")
    names = [f"{row}_{split}" for row in dict.fromkeys(split_name(name)[0] for name in cfg.DATASETS.TEST)]
    found = tuple(name for name in names if Path(MetadataCatalog.get(name).json_file).is_file())
    missing = sorted(set(names) - set(found))
    if missing and not found and cfg.TEST.SPLIT:
        raise FXError(f"TEST.SPLIT {split!r}: no dataset of DATASETS.TEST has it; missing: {', '.join(missing)}")
    if missing:
        text = f"not evaluated{' in training' * training}: there is no {', '.join(missing)}"
        log_first_n(logging.WARNING, text, name=__name__, key="message")
    return found


def get_dicts(name: str, limit: int = 0) -> list[dict[str, Any]]:
    """The dicts of a registered split (format: `annotations.load_split`), at most the first `limit` (0 = all)."""
    if name not in DatasetCatalog.list():
        raise FXError(f"dataset split {name!r} is not registered: call fx_d2.data.register_datasets(cfg) first")
    dicts = DatasetCatalog.get(name)
    return dicts[:limit] if limit > 0 else dicts


def check_images(dicts: Sequence[dict[str, Any]]) -> None:
    """Check that image and mask files exist, with one directory listing per folder instead of one stat per file.

    Raises:
        FXError: names the first missing file and the number of missing files of its kind.
    """
    masks = (mask for record in dicts for mask in record["masks"] or () if mask is not None)
    for kind, paths in (
        ("image", [record["file_name"] for record in dicts]),
        ("mask", [mask["file"] for mask in masks if "file" in mask]),
    ):
        missing = _missing(paths)
        if missing:
            raise FXError(
                f"{missing[0]}: {kind} file not found ({len(missing)} of {len(paths)} {kind}s of "
                f"{dicts[0]['dataset']!r} are missing): check info.image_root in the annotation file, or prepare the "
                "dataset again"
            )


def _missing(paths: Iterable[str]) -> list[str]:
    """The files that do not exist."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition(os.sep)
        folders[folder].append(name)
    missing = []
    for folder, names in folders.items():
        if len(names) < 4:
            missing += [os.path.join(folder, n) for n in names if not os.path.isfile(os.path.join(folder, n))]
            continue
        present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing += [os.path.join(folder, name) for name in names if name not in present]
    return missing


def _root_path(cfg: CfgNode) -> Path:
    return Path(cfg.DATASETS.ROOT or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def _find_spec(row: str, root: Path) -> DatasetSpec:
    """Look up a dataset row by name; a dataset.yaml may change the policies of a built-in row but not its classes."""
    file = root / row / SPEC_FILE
    if not file.is_file():
        if row in BY_NAME:
            return BY_NAME[row]
        raise FXError(
            f"unknown dataset {row!r}: neither built in ({', '.join(BY_NAME)}) nor found as {str(file)!r}"
            f"{_own_rows(root)}; {_PREPARE.format(root=root)}"
        )
    spec = load_spec(file)
    if spec.name != row:
        raise FXError(f"{file}: its name is {spec.name!r}, but its folder is {row!r}: they must agree")
    check_own_row(spec, str(file))
    known = BY_NAME.get(row, spec)
    changed = [key for key in ("cls_kind", "uncertain", "blank", "soft_range", "reporting", "flip_pairs")
               if getattr(known, key) != getattr(spec, key)]  # fmt: skip
    if changed:
        logger.warning("%s overrides the built-in dataset: %s", file, ", ".join(changed))
    return spec


def _own_rows(root: Path) -> str:
    """ "; datasets prepared there: a, b" or ""."""
    names = sorted(file.parent.name for file in root.glob(f"*/{SPEC_FILE}"))
    return f"; datasets prepared there: {', '.join(names)}" if names else ""


def _register_rows(cfg: CfgNode, rows: Iterable[str], root: Path) -> list[str]:
    """Register dataset rows by name, limited to DATASETS.TASKS and DATASETS.CLASSES."""
    specs = [_find_spec(row, root) for row in rows]
    used = narrow_rows(specs, cfg.DATASETS.TASKS, cfg.DATASETS.CLASSES)
    return [name for spec, part in zip(specs, used, strict=True) for name in _register(spec, part, root)]


def _load(file: Path, spec: DatasetSpec, used: DatasetSpec, split: str) -> list[dict[str, Any]]:
    records = load_split(file, spec, split)
    return records if used == spec else narrow_records(records, spec, used)


def _register(spec: DatasetSpec, used: DatasetSpec, root: Path) -> list[str]:
    """Register the splits of a row in both catalogs, replacing existing ones; `used` is the row limited to its use."""
    names = []
    for split in SPLITS:
        name = f"{spec.name}_{split}"
        file = root.absolute() / spec.name / f"{split}.json"
        _forget([name])
        DatasetCatalog.register(name, functools.partial(_load, file, spec, used, split))
        MetadataCatalog.get(name).set(
            spec=used,
            split=split,
            json_file=str(file),
            thing_classes=list(used.loc_classes),
            evaluator_type="fx",
        )
        names.append(name)
    return names


def _forget(names: Iterable[str]) -> None:
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.pop(name)
