"""Packaging of fx_d2. Every dependency has its reason; lower bounds are the versions the tests ran with.

Detectron2 is not listed: it has no release on the package index under its own name. `make install` installs it from
requirements/detectron2.txt without its dependencies, so what it needs at run time is listed here.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

INSTALL_REQUIRES = [
    "torch==2.15.*",  # tested minor version; fvcore and detectron2 call torch.jit.script at import, which is deprecated
    "torchvision==0.29.*",  # matches torch 2.15; detectron2 and timm import it (box operators)
    "timm>=1.0.31,<1.1",  # the backbone: Swin with features_only
    "safetensors>=0.8",  # inference checkpoints: a weight format that cannot execute code
    "numpy>=2.4,<2.5",  # pycocotools relies on an __array__ signature that later numpy versions reject
    "scipy>=1.17",  # optimal assignment of queries to ground-truth boxes; distance transforms
    "Pillow>=13,<14",  # image headers, mask files, writing PNGs; detectron2's image tools
    # Decoding, resizing, warping; detectron2's Visualizer. The headless build is the same cv2 without the X11 libraries
    # that cluster nodes lack.
    "opencv-python-headless>=5",
    "kornia-rs>=0.2,<0.3",  # decodes greyscale PNGs twice as fast as cv2's libpng; decoding is half of a loader's time
    "pycocotools>=2.0.11",  # run-length masks; COCO metrics to test and benchmark against
    "PyYAML>=6",  # dataset rows, dataset.yaml
    "matplotlib>=3.11",  # detectron2's Visualizer; plots of reports
    "Jinja2>=3.1",  # HTML reports, with escaping; also a dependency of torch
    "tensorboard>=2.21",  # detectron2's TensorboardXWriter
    "fvcore>=0.1.5.post20221221",  # detectron2: config nodes, checkpointer, schedulers (absent from its metadata)
    "iopath>=0.1.10",  # detectron2: PathManager (absent from its metadata)
    "yacs>=0.1.8",  # detectron2: config
    "omegaconf>=2.3,<2.4",  # detectron2 imports it for lazy configs
    "hydra-core>=1.3,<1.4",  # detectron2 imports it for lazy configs
    "cloudpickle",  # detectron2: launch and lazy configs
    "tabulate",  # tables of results and reports; detectron2: tables in the log
    "termcolor",  # detectron2: log
    "tqdm",  # progress of the preparation scripts; detectron2 imports it
    "packaging",  # detectron2 declares it
]

EXTRAS_REQUIRE = {
    "dicom": [
        "pydicom>=3,<4",  # DICOM files: modality and VOI tables, windows, MONOCHROME1, bit depth
        # All kinds of compressed pixels in one package: JPEG, JPEG lossless, JPEG-LS, JPEG 2000. Apache-2.0, whereas
        # the usual pylibjpeg-libjpeg is GPL-3.0.
        "python-gdcm>=3.2",
    ],
    "mha": [
        "SimpleITK>=2.5",  # MHA and MHD files (NODE21)
    ],
    "web": [
        # The page of tools/demo.py. Flask needs one function per route and limits upload size, and its Werkzeug comes
        # with tensorboard anyway. Gradio 6 would add thirty packages and require Pillow 12; the async servers FastAPI
        # and Starlette have no benefit for a single model behind a lock.
        "flask>=3.1",
        "werkzeug>=3.1",  # a dependency of Flask, imported for its exceptions
        "waitress>=3",  # WSGI server: pure Python, multi-threaded, no request log
    ],
    "export": [
        "onnx>=1.23",  # the file format torch.onnx writes
        "onnxscript>=0.7",  # torch.onnx converts with it
        "onnxruntime>=1.32",  # runs the exported model
    ],
    "triton": [
        "triton>=3.9",  # MODEL.LOC.SAMPLER triton; comes with torch's builds for GPUs
    ],
    "dev": [
        "ruff",  # style
        "mypy",  # types
        "pytest",  # tests
        "pytest-xdist",  # runs tests in parallel
        "hypothesis",  # property-based tests of boxes, masks and schedules
        "scikit-learn",  # independent AUROC and average precision to test against
        "pydicom>=3,<4",  # tests write and read DICOM files
        "python-gdcm>=3.2",  # tests compress and read DICOM files
        "SimpleITK>=2.5",  # tests write and read MHA files
        "flask>=3.1",  # tests upload images to the page
        "werkzeug>=3.1",
        "waitress>=3",
        "onnx>=1.23",  # tests export models ...
        "onnxscript>=0.7",
        "onnxruntime>=1.32",  # ... and run them
    ],
}


def read_version() -> str:
    """`__version__` from fx_d2/__init__.py, without importing the package."""
    text = (ROOT / "fx_d2" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('fx_d2/__init__.py has no line `__version__ = "..."`')
    return found.group(1)


setup(
    name="fx_d2",
    version=read_version(),
    description="Foundation X on Detectron2: classification, localization and segmentation of chest X-rays",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["fx_d2", "fx_d2.*"]),
    # sources compiled on first use; report templates; the page of tools/demo.py --web
    package_data={"fx_d2.layers": ["*.cpp"], "fx_d2.reporting": ["templates/*"], "fx_d2.demo": ["page/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
