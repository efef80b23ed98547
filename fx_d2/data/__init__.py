"""Data: dataset table, annotation format, catalog, image reader, augmentation, mappers, sampler, loaders."""

from fx_d2.data.annotations import check_patients, file_content_hash, load_spec, load_split, write_spec, write_split
from fx_d2.data.cache import cache_images, read_full_size, read_record
from fx_d2.data.catalog import (
    check_images,
    dataset_root,
    evaluation_splits,
    get_dicts,
    register_datasets,
    register_rows,
    register_spec,
)
from fx_d2.data.image_io import image_size, read_image
from fx_d2.data.loaders import Loader, TrainData, build_test_loader, build_train_data, check_test_split
from fx_d2.data.mapper import EvalMapper, TrainMapper
from fx_d2.data.sampler import PassBatchSampler, SampleKey, images_in_pass, steps_in_pass
from fx_d2.data.table import PRETRAINING

__all__ = [
    "PRETRAINING",
    "EvalMapper",
    "Loader",
    "PassBatchSampler",
    "SampleKey",
    "TrainData",
    "TrainMapper",
    "build_test_loader",
    "build_train_data",
    "cache_images",
    "check_images",
    "check_patients",
    "check_test_split",
    "dataset_root",
    "evaluation_splits",
    "file_content_hash",
    "get_dicts",
    "image_size",
    "images_in_pass",
    "load_spec",
    "load_split",
    "read_full_size",
    "read_image",
    "read_record",
    "register_datasets",
    "register_rows",
    "register_spec",
    "steps_in_pass",
    "write_spec",
    "write_split",
]
