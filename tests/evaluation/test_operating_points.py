from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from fx_d2.config import add_fx_config
from fx_d2.evaluation import build_thresholds, read_points, write_points
from fx_d2.structures import FXError

NAN = float("nan")
POINTS = {
    "student": {
        "films": {
            "split": "films_val",
            "points": {
                "a": {"threshold": 0.1 + 0.2, "sensitivity": 0.9, "specificity": 0.91},
                "b": {"threshold": NAN, "sensitivity": NAN, "specificity": NAN},
            },
        }
    }
}


def test_written_and_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "operating_points.json"
    write_points(path, POINTS, {"student": "sha256:1", "teacher": "sha256:2"}, 0.9)
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["specificity"] == 0.9
    found = read_points(path, {"student": "sha256:1", "teacher": "sha256:2"})
    assert found == {"student": {"films": {"a": 0.1 + 0.2}}}


def test_points_of_other_weights_are_not_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "operating_points.json"
    write_points(path, POINTS, {"student": "sha256:1"}, 0.9)
    assert read_points(path, {"student": "sha256:other"}) == {}
    assert any("other weights of the student" in message for message in caplog.messages)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    for content in (None, "{", "[]", "{}"):
        if content is not None:
            path.write_text(content)
        with pytest.raises(FXError, match="points.json"):
            read_points(path, {"student": "x"})


def test_the_file_beside_the_weights_is_found_unless_another_is_named(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_fx_config(cfg)
    weights = {"student": "sha256:1"}
    assert build_thresholds(cfg, weights) == {}
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    assert build_thresholds(cfg, weights) == {}
    write_points(tmp_path / "operating_points.json", POINTS, weights, 0.9)
    assert set(build_thresholds(cfg, weights)) == {"student"}
    cfg.TEST.OPERATING_POINTS = str(tmp_path / "absent.json")
    with pytest.raises(FXError, match="absent.json"):
        build_thresholds(cfg, weights)
