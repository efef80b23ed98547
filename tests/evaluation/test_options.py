from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from fx_d2.config import add_fx_config
from fx_d2.evaluation import MetricOptions
from fx_d2.structures import FXError


def test_options_come_from_the_config() -> None:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.TEST.BOOTSTRAP, cfg.TEST.BOOTSTRAP_SEED, cfg.TEST.SPECIFICITY = 5, 3, 0.8
    cfg.TEST.FROC_IOU, cfg.TEST.HAUSDORFF = 0.3, True
    options = MetricOptions.from_config(cfg)
    assert options == MetricOptions(bootstrap=5, seed=3, specificity=0.8, froc_iou=0.3, hausdorff=True)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"bootstrap": -1}, "BOOTSTRAP"), ({"specificity": 1.0}, "SPECIFICITY"), ({"froc_iou": 0}, "FROC")],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float], key: str) -> None:
    with pytest.raises(FXError, match=f"TEST.{key}"):
        MetricOptions(**wrong)
