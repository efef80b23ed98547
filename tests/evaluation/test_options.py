from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from fx_d2.config import add_fx_config
from fx_d2.evaluation import MetricOptions
from fx_d2.structures import FXError


def test_options_come_from_the_config() -> None:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.TEST.BOOTSTRAP, cfg.TEST.SPECIFICITY, cfg.TEST.HAUSDORFF = 5, 0.8, True
    options = MetricOptions.from_config(cfg)
    assert options == MetricOptions(bootstrap=5, seed=0, specificity=0.8, froc_iou=0.2, hausdorff=True)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"bootstrap": -1}, "BOOTSTRAP"), ({"specificity": 1.0}, "SPECIFICITY"), ({"froc_iou": 0}, "FROC")],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float], key: str) -> None:
    with pytest.raises(FXError, match=f"TEST.{key}"):
        MetricOptions(**wrong)
