"""Weights from elsewhere, under this package's names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fx_d2.modeling.convert.fit import fit
from fx_d2.modeling.convert.official import rename_official
from fx_d2.modeling.convert.renamed import Renamed
from fx_d2.modeling.convert.trunk import rename_swin, rename_timm

__all__ = ["Renamed", "convert_state"]


def convert_state(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Renamed:
    """Recognise a state dict's layout by its names, and rename and reshape it for a model.

    Args:
        source: of a file, such as the authors' Foundation X or Foundation X+, Ark, POPAR, an ImageNet Swin, any timm
            model, a Detectron2 model with a Swin, or this package.
        target: state dict of the model; only names, shapes and types are read, so it may lie on the meta device.

    Returns:
        Tensors in the types of `target`. Nothing is thrown away in silence: what found no place is listed.
    """
    if target.keys() & source.keys():
        result = Renamed("fx_d2", dict(source))
    else:
        found = (rename(source, target) for rename in (rename_official, rename_swin, rename_timm))
        result = next((one for one in found if one is not None), Renamed("unknown", {}, list(source)))
    result.notes += fit(result.state, target)
    result.state = {k: v.to(target[k].dtype) if k in target else v for k, v in result.state.items()}
    return result
