"""The words of the package: rows, phases, and how they are looked up."""

from typing import Any

import pytest
import yaml

from fx_d2.structures import (
    COMPONENTS,
    SHARED_COMPONENTS,
    TASK_COMPONENTS,
    DatasetSpec,
    FXError,
    Phase,
    spec_of,
    specs_of,
)

FULL = DatasetSpec(
    name="jsrt",
    title="JSRT",
    cls_classes=("nodule",),
    loc_classes=("left lung", "right lung", "heart"),
    seg_classes=("left lung", "left clavicle", "right clavicle", "right lung"),
    uncertain="soft",
    soft_range=(0.5, 0.9),
    reporting=("nodule",),
    flip_pairs=(("left lung", "right lung"), ("left clavicle", "right clavicle")),
    expected=(("train", 199), ("test", 48)),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "nih-14"}, "'nih-14' must be letters, digits and _, no digit first"),
        ({"cls_classes": ()}, "'toy' has no classes"),
        ({"cls_classes": ("a", "b", "a")}, "'toy': cls_classes holds a name twice"),
        ({"seg_classes": ("a", "a")}, "'toy': seg_classes holds a name twice"),
        ({"cls_kind": "multiclass"}, "cls_kind must be multilabel or softmax, not 'multiclass'"),
        ({"uncertain": "drop"}, "'toy': uncertain must be one of"),
        ({"blank": "ones"}, "blank ignore or zeros"),
        ({"reporting": ("a", "c")}, "'toy': reporting names classes"),
        ({"flip_pairs": (("a", "left"),)}, r"flip_pairs names unknown classes \['left'\]"),
        ({"cls_classes": ("a", "b", "c"), "flip_pairs": (("a", "b"), ("b", "c"))}, "a name in one pair"),
        ({"flip_pairs": ("ab",)}, "flip_pairs must be pairs"),
        ({"soft_range": (0.5, 3)}, r"soft_range must be two numbers in \[0, 1\]"),
    ],
)
def test_a_wrong_row_names_itself_and_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FXError, match=message):
        DatasetSpec(**{"name": "toy", "title": "Toy", "cls_classes": ("a", "b")} | changes)


def test_tasks_follow_from_the_classes_in_order() -> None:
    assert FULL.tasks == ("cls", "loc", "seg")
    assert DatasetSpec(name="x", title="X", seg_classes=("a",), cls_classes=("b",)).tasks == ("cls", "seg")
    assert FULL.classes("loc") == FULL.loc_classes and DatasetSpec("y", "Y", ("a",)).classes("seg") == ()


def test_a_row_limited_to_some_tasks_is_a_row() -> None:
    row = DatasetSpec(name="x", title="X", cls_classes=("a", "l", "r"), loc_classes=("l", "r"), seg_classes=("s",),
                      reporting=("a",), flip_pairs=(("l", "r"),), uncertain="ones")  # fmt: skip
    assert row.limited_to(row.tasks) == row
    boxes = row.limited_to(["loc"])
    assert boxes.tasks == ("loc",) and boxes.reporting == () and boxes.flip_pairs == row.flip_pairs
    assert boxes.uncertain == "ones" and row.limited_to(["seg"]).flip_pairs == ()
    with pytest.raises(FXError, match="no classes"):
        row.limited_to([])


def test_a_row_survives_yaml() -> None:
    plain = FULL.to_dict()
    assert DatasetSpec.from_dict(yaml.safe_load(yaml.safe_dump(plain)), "here") == FULL
    assert plain["flip_pairs"] == [["left lung", "right lung"], ["left clavicle", "right clavicle"]]


def test_from_dict_fills_the_title_and_refuses_strange_keys() -> None:
    assert DatasetSpec.from_dict({"name": "a", "cls_classes": ["b"]}, "here").title == "a"
    with pytest.raises(FXError, match=r"^rows.yaml: unknown keys \['classes'\]; a dataset row has .*cls_classes"):
        DatasetSpec.from_dict({"name": "a", "classes": ["b"]}, "rows.yaml")
    for row in ({"cls_classes": ["b"]}, ["a"]):
        with pytest.raises(FXError, match="^rows.yaml: a dataset row is a mapping"):
            DatasetSpec.from_dict(row, "rows.yaml")  # type: ignore[arg-type]


def test_flip_permutation_swaps_sides_within_each_task() -> None:
    assert FULL.flip_permutation("cls") == [0]
    assert FULL.flip_permutation("loc") == [1, 0, 2]
    assert FULL.flip_permutation("seg") == [3, 2, 1, 0]


def test_flip_permutation_leaves_a_side_without_partner() -> None:
    spec = DatasetSpec("a", "A", loc_classes=("left",), seg_classes=("left", "right"), flip_pairs=(("left", "right"),))
    assert spec.flip_permutation("loc") == [0] and spec.flip_permutation("seg") == [1, 0]


@pytest.mark.parametrize(
    ("task", "trainable", "frozen", "mode"),
    [
        ("cls", ("backbone", "cls_heads"), (), "release"),
        ("cls", ("cls_heads",), ("backbone",), "lock"),
        ("loc", ("loc_decoders",), ("backbone", "loc_encoder"), "lock"),
        ("loc", ("backbone", "loc_decoders"), ("loc_encoder",), "lock"),
        ("loc", ("backbone", "loc_encoder", "loc_decoders"), (), "release"),
        ("seg", ("backbone", "seg_decoder"), ("seg_heads",), "release"),
    ],
)
def test_a_phase_is_locked_when_a_shared_part_is(
    task: str, trainable: tuple[str, ...], frozen: tuple[str, ...], mode: str
) -> None:
    phase = Phase("rsna", task, trainable)
    assert phase.frozen == frozen and phase.mode == mode and str(phase) == f"rsna/{task}/{mode}"


def test_components_are_one_vocabulary() -> None:
    assert set(COMPONENTS) == {c for parts in TASK_COMPONENTS.values() for c in parts}
    assert set(SHARED_COMPONENTS) < set(COMPONENTS)


def test_rows_are_found_behind_registered_splits(tiny_spec: DatasetSpec) -> None:
    assert spec_of("tiny_train") is tiny_spec
    assert [s.name for s in specs_of(["tiny_softmax_train", "tiny_train", "tiny_softmax_train"])] == [
        "tiny_softmax",
        "tiny",
    ]
    with pytest.raises(FXError, match="'tiny_val' is not registered"):
        spec_of("tiny_val")


@pytest.mark.parametrize("classes", ["lung", [1, 2]])
def test_class_lists_that_are_no_lists_of_names_are_refused(classes: object) -> None:
    with pytest.raises(FXError, match="seg_classes must be a list of names"):
        DatasetSpec.from_dict({"name": "x", "seg_classes": classes}, "x.yaml")
