"""Foundation X on Detectron2: one model for chest X-ray datasets with different kinds of annotation."""

__version__ = "0.1.0"
