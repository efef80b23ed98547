"""The model. Importing this module registers the meta-architecture and its backbone with Detectron2."""

from fx_d2.modeling.backbone import TimmBackbone, build_timm_backbone
from fx_d2.modeling.heads import HeadChange, change_heads
from fx_d2.modeling.meta_arch import FoundationX
from fx_d2.modeling.teacher import EMATeacher

__all__ = ["EMATeacher", "FoundationX", "HeadChange", "TimmBackbone", "build_timm_backbone", "change_heads"]
