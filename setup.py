"""Packaging of fx_d2. Each dependency stands with its reason; lower ends are the versions the tests ran with.

Detectron2 is not listed: it has no release on the package index under its own name. `make install` installs it from
requirements/detectron2.txt without its dependencies, so what it needs at run time is listed here.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

INSTALL_REQUIRES = [
    "torch==2.15.*",  # tested minor version; fvcore and detectron2 use torch.jit.script at import, which is going away
    "torchvision==0.29.*",  # the partner of torch 2.15; detectron2 and timm import it (box operators)
    "timm>=1.0.31,<1.1",  # the trunk: Swin with features_only
    "safetensors>=0.8",  # inference checkpoints: weights in a file that cannot run code
    "numpy>=2.4,<2.5",  # pycocotools still relies on an __array__ signature that a later numpy refuses
    "scipy>=1.17",  # optimal matching of queries to boxes
    "Pillow>=13,<14",  # reading 8-, 12- and 16-bit images; detectron2's image tools
    # cv2 for resizing and warping, and for detectron2's Visualizer. The headless build holds the same cv2 without X11
    # libraries, which cluster nodes lack.
    "opencv-python-headless>=5",
    "kornia-rs>=0.2,<0.3",  # decodes grey PNGs twice as fast as cv2's libpng; half of a loader's time is decoding
    "pycocotools>=2.0.11",  # run-length masks and average precision; the C++ evaluator of detectron2 is not needed
    "PyYAML>=6",  # a dataset's own row, dataset.yaml
    "matplotlib>=3.11",  # detectron2's Visualizer; plots of reports
    "Jinja2>=3.1",  # pages of reports, escaped; torch needs it as well
    "tensorboard>=2.21",  # detectron2's TensorboardXWriter
    "fvcore>=0.1.5.post20221221",  # detectron2: config nodes, checkpointer, schedulers (absent from its metadata)
    "iopath>=0.1.10",  # detectron2: PathManager (absent from its metadata)
    "yacs>=0.1.8",  # detectron2: config
    "omegaconf>=2.3,<2.4",  # detectron2 imports it for lazy configs
    "hydra-core>=1.3,<1.4",  # detectron2 imports it for lazy configs
    "cloudpickle",  # detectron2: launch and lazy configs
    "tabulate",  # detectron2: tables in the log
    "termcolor",  # detectron2: log
    "tqdm",  # progress of the preparation scripts; detectron2 imports it
    "packaging",  # detectron2 declares it
]

EXTRAS_REQUIRE = {
    "dicom": [
        "pydicom>=3,<4",  # DICOM files: modality and VOI tables, windows, MONOCHROME1, bit depth
        # Compressed pixels, all kinds in one package: JPEG, JPEG lossless, JPEG-LS, JPEG 2000. Apache-2.0, where the
        # usual pylibjpeg-libjpeg is GPL-3.0.
        "python-gdcm>=3.2",
    ],
    "mha": [
        "SimpleITK>=2.5",  # MHA and MHD files (NODE21)
    ],
    "web": [
        # The page of tools/demo.py. Flask is one function an address and refuses large uploads, and its Werkzeug
        # comes with tensorboard anyway. Gradio 6 would bring thirty packages and go back to Pillow 12;
        # FastAPI and Starlette serve asynchronously, of which one model behind a lock has no use.
        "flask>=3.1",
        "werkzeug>=3.1",  # Flask's own: its errors
        "waitress>=3",  # serves it: plain Python, several threads, no log of requests
    ],
    "export": [
        "onnx>=1.23",  # torch.onnx writes its files
        "onnxscript>=0.7",  # torch.onnx translates with it
        "onnxruntime>=1.32",  # runs what was written
    ],
    "triton": [
        "triton>=3.9",  # MODEL.LOC.SAMPLER triton; comes with torch's builds for GPUs
    ],
    "dev": [
        "ruff",  # style
        "mypy",  # types
        "pytest",  # tests
        "pytest-xdist",  # tests on two cores at once
        "hypothesis",  # property tests of box maths, masks and schedules
        "scikit-learn",  # independent AUROC to test ours against
        "pydicom>=3,<4",  # tests write and read DICOM files
        "python-gdcm>=3.2",  # tests compress and read DICOM files
        "SimpleITK>=2.5",  # tests write and read MHA files
        "flask>=3.1",  # tests drop films on the page
        "werkzeug>=3.1",
        "waitress>=3",
        "onnx>=1.23",  # tests export ...
        "onnxscript>=0.7",
        "onnxruntime>=1.32",  # ... and run what they exported
    ],
}


def read_version() -> str:
    """`__version__` of fx_d2/__init__.py, read without importing the package."""
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
    # compiled on first use; the report's page; the page of --web
    package_data={"fx_d2.layers": ["*.cpp"], "fx_d2.reporting": ["templates/*"], "fx_d2.demo": ["page/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
