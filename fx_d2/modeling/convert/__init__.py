"""Conversion of foreign checkpoints to this package's parameter names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fx_d2.modeling.convert.fit import fit
from fx_d2.modeling.convert.official import rename_official
from fx_d2.modeling.convert.renamed import Renamed
from fx_d2.modeling.convert.trunk import rename_swin, rename_timm

__all__ = ["Renamed", "convert_state"]


def convert_state(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Renamed:
    """Recognise a state dict's layout by its names, then rename and reshape it for a model.

    Args:
        source: state dict of a file: the authors' Foundation X or Foundation X+, Ark, POPAR, an ImageNet Swin, any timm
            model, a Detectron2 model with a Swin, or a model of this package.
        target: state dict of the model; only names, shapes and dtypes are read, so it may be on the meta device.

    Returns:
        Tensors in the dtypes of `target`. Nothing is dropped silently: unmatched names are listed.
    """
    if target.keys() & source.keys():
        result = Renamed("fx_d2", dict(source))
    else:
        found = (rename(source, target) for rename in (rename_official, rename_swin, rename_timm))
        result = next((one for one in found if one is not None), Renamed("unknown", {}, list(source)))
    result.notes += fit(result.state, target)
    result.state = {k: v.to(target[k].dtype) if k in target else v for k, v in result.state.items()}
    return result
