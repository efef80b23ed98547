"""The model. Importing this module registers it and its trunk with Detectron2."""

from .backbone import TimmBackbone, build_timm_backbone
from .meta_arch import FoundationX
from .teacher import EMATeacher

__all__ = ["EMATeacher", "FoundationX", "TimmBackbone", "build_timm_backbone"]
