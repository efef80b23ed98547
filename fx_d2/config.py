"""All configuration keys of fx_d2, each defined once, under a comment that documents it."""

from __future__ import annotations

import copy
from typing import Any

from detectron2.config import CfgNode as CN

PAPER_STRATEGY: list[dict[str, Any]] = [
    {"task": "cls", "share": 1.0, "train": ["backbone", "cls_heads"]},
    {"task": "loc", "share": 0.5, "train": ["loc_decoders"]},
    {"task": "loc", "share": 1.0, "train": ["backbone", "loc_encoder", "loc_decoders"]},
    {"task": "seg", "share": 0.5, "train": ["seg_heads"]},
    {"task": "seg", "share": 1.0, "train": ["backbone", "seg_decoder", "seg_heads"]},
]
"""The paper's passes: one row per pass, in the order in which they run on a dataset.

Optional keys of a row: "passes" (number of consecutive repetitions, each on a new random sample of images), "steps"
(maximum number of steps per pass) and "datasets" (names of the only datasets that the row applies to).
"""


def add_fx_config(cfg: CN) -> None:
    """Add fx_d2's keys to Detectron2's default config, in place."""
    _add_data(cfg)
    _add_model(cfg)
    _add_localization(cfg)
    _add_training(cfg)
    _add_solver(cfg)
    _add_evaluation(cfg)


def _add_data(cfg: CN) -> None:
    # Root folder of the prepared annotation files, <ROOT>/<name>/{train,val,test}.json. Empty: $DETECTRON2_DATASETS if
    # set, else ./datasets/prepared. As in Detectron2, DATASETS.TRAIN and DATASETS.TEST list registered names,
    # "<name>_<split>", where <name> is that of a dataset row (`DatasetSpec`).
    cfg.DATASETS.ROOT = ""
    # Tasks to use, out of those each dataset is annotated for; determines heads, passes and evaluation.
    cfg.DATASETS.TASKS = ["cls", "loc", "seg"]
    # Class names to use, for all datasets and tasks; empty: all classes. Boxes of other classes are ignored.
    cfg.DATASETS.CLASSES = []
    # Few-shot training on IMAGES images per dataset (0 = all), sampled with SEED among the images annotated for every
    # task in use. A patient contributes a second image only once every patient has contributed one. For a given seed,
    # smaller samples are subsets of larger ones. Validation and test splits are not reduced.
    cfg.DATASETS.FEW_SHOT = CN({"IMAGES": 0, "SEED": 0})
    # Use only the first N images of each split, for debugging (0 = all).
    cfg.DATASETS.LIMIT = 0
    # File listing training images to exclude because they also occur in another dataset's test split; written by
    # tools/check_datasets.py --exclude. Empty: no exclusions.
    cfg.DATASETS.EXCLUDE = ""

    # Network input size (height, width) in pixels. Images are resized without keeping the aspect ratio, as in the
    # reference recipe.
    cfg.INPUT.SIZE = [224, 224]
    # Shorter side in pixels to which images are downsampled when loaded, before augmentation (0 = full resolution). A
    # cache written during dataset preparation (--cache-size) holds the same pixels and loads faster; its images must
    # not be smaller than this.
    cfg.INPUT.READ_SIZE = 0
    # Data type of loaded grey values, in the range 0..255: "uint8", or "float32", which preserves the full bit depth of
    # 12- and 16-bit images but cannot use the 8-bit cache.
    cfg.INPUT.DTYPE = "uint8"
    # Input of the teacher: the "same" tensor as the student's, or a separate "photometric" view. The geometry is always
    # shared, because tokens and feature maps are compared position by position.
    cfg.INPUT.TEACHER_VIEW = "photometric"
    # Augmentation per task. FLIP: probability of a horizontal flip (left and right classes are swapped);
    # CROP_AREA: minimum area of a random crop, relative to the image (1 = no crop; reference: 0.08 for classification);
    # ROTATE: +- degrees; SCALE, SHIFT: relative range of a random affine transform; BRIGHTNESS, CONTRAST: +- relative
    # range; PROB: probability of the affine transform and, independently, of the photometric one.
    for task, crop, rotate, scale, shift, prob in (
        ("CLS", 0.5, 7.0, 0.0, 0.0, 1.0),
        ("LOC", 1.0, 0.0, 0.0, 0.0, 1.0),
        ("SEG", 1.0, 10.0, 0.1, 0.0625, 0.5),
    ):
        cfg.INPUT[task] = CN(
            {"FLIP": 0.5, "CROP_AREA": crop, "ROTATE": rotate, "SCALE": scale, "SHIFT": shift}
            | {"BRIGHTNESS": 0.2, "CONTRAST": 0.2, "PROB": prob}
        )


def _add_model(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "FoundationX"
    # Which model in the file MODEL.WEIGHTS initialises a training run: "student" or "teacher". Empty: the student, or
    # the only model in the file; for Ark checkpoints the teacher, as its authors recommend.
    cfg.MODEL.WEIGHTS_FROM = ""
    # Backend of torch.compile, usually "inductor", for the modules whose input shapes are static during training:
    # backbone blocks, encoder layers and segmentation decoder. Empty: no compilation. The first pass of each kind is
    # slower. Results are the same up to rounding, except for random layers (DROP_PATH, DROPOUT).
    cfg.MODEL.COMPILE = ""
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    # Mean and standard deviation for grey values in [0, 255]: one value each, or three for a stem that was pretrained
    # with per-channel statistics. Normalisation happens once, inside the model.
    # Mean 0.5056 and std 0.252 are the reference recipe's chest X-ray statistics (classification branch).
    cfg.MODEL.PIXEL_MEAN = [0.5056 * 255]
    cfg.MODEL.PIXEL_STD = [0.252 * 255]

    # Backbone: any timm model that supports features_only. KWARGS are passed to timm.create_model unchanged.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "swin_base_patch4_window7_224"
    cfg.MODEL.TIMM.KWARGS = CN(new_allowed=True)
    cfg.MODEL.TIMM.DROP_PATH = 0.2
    # Input channels of the stem. 3: the grey image is replicated, as ImageNet weights require; 1: a one-channel stem.
    cfg.MODEL.TIMM.IN_CHANS = 3
    # Recompute the backbone's activations in the backward pass: less memory, about 20 % slower.
    cfg.MODEL.TIMM.GRAD_CHECKPOINTING = False
    # Compute the backbone's attention with torch's fused kernels, where the timm model supports them. On one CPU core,
    # this makes evaluation with Swin-T and Swin-B 3 to 7 % faster. A Swin that is trained on a CPU keeps timm's own
    # attention, which is 4 to 7 % faster there.
    cfg.MODEL.TIMM.FUSED_ATTENTION = True
    # Freeze the stem and this many stages of the backbone permanently, whatever a pass trains (0 = nothing is frozen).
    cfg.MODEL.TIMM.FROZEN_STAGES = 0

    # Segmentation: a decoder shared by all datasets (pyramid pooling on the last stage, then a fused feature pyramid),
    # and a head per dataset (3x3 convolution).
    cfg.MODEL.SEG = CN()
    cfg.MODEL.SEG.DIM = 128
    cfg.MODEL.SEG.POOL_BINS = [1, 2, 4, 6]
    cfg.MODEL.SEG.DROPOUT = 0.1
    # Normalisation of the decoder's convolutions, by its Detectron2 name: BN (reference), SyncBN, GN.
    cfg.MODEL.SEG.NORM = "BN"
    # Dice loss over the flattened batch ("batch", reference) or per class and then averaged ("class").
    cfg.MODEL.SEG.DICE = "class"
    # Region guidance (Foundation X+): the backbone features f enter the segmentation decoder as
    # (1 - WEIGHT) * f + WEIGHT * f * map. The map is 1 inside the boxes that the dataset's localization decoder
    # predicts with a score above SCORE, their area enlarged by the factor AREA, and decays outside them. Identical in
    # training and evaluation; not applied to datasets without box classes. WEIGHT 0 = off (Foundation X);
    # Foundation X+: 0.5.
    cfg.MODEL.SEG.REGION = CN({"WEIGHT": 0.0, "SCORE": 0.3, "AREA": 1.5})

    # EMA teacher. CONSISTENCY is c in the loss (1 - c) * task + c * consistency; CONSISTENCY 0 or ENABLED False removes
    # the teacher and its cost. UPDATE: after each "pass" (reference), or after each "step", which needs a momentum
    # close to 1. SCHEDULE of the momentum: "constant" MOMENTUM (reference); "cosine" from MOMENTUM to MOMENTUM_END over
    # the run; or "warmup", min(MOMENTUM, (1 + n) / (10 + n)) at the n-th update.
    cfg.MODEL.TEACHER = CN()
    cfg.MODEL.TEACHER.ENABLED = True
    cfg.MODEL.TEACHER.UPDATE = "pass"
    cfg.MODEL.TEACHER.SCHEDULE = "constant"
    cfg.MODEL.TEACHER.MOMENTUM = 0.8
    cfg.MODEL.TEACHER.MOMENTUM_END = 1.0
    cfg.MODEL.TEACHER.CONSISTENCY = 0.5


def _add_localization(cfg: CN) -> None:
    # Localization: DINO-style encoder (shared) and decoders (one per dataset). The reference has 900 queries, and the
    # same other sizes.
    cfg.MODEL.LOC = CN()
    cfg.MODEL.LOC.HIDDEN_DIM = 256
    cfg.MODEL.LOC.NUM_HEADS = 8
    cfg.MODEL.LOC.NUM_POINTS = 4
    cfg.MODEL.LOC.FFN_DIM = 2048
    cfg.MODEL.LOC.ENC_LAYERS = 6
    cfg.MODEL.LOC.DEC_LAYERS = 6
    cfg.MODEL.LOC.NUM_QUERIES = 300
    # Backbone stages (0-based) used as encoder input; a strided convolution adds one more level.
    cfg.MODEL.LOC.STAGES = [1, 2, 3]
    # True: all datasets share one stack of decoder layers, locked and released with the encoder, while queries and
    # heads remain per dataset (Foundation X+). False: a complete decoder per dataset (Foundation X).
    cfg.MODEL.LOC.SHARED_DECODER = False
    # Temperatures of the sinusoidal position encodings of tokens and of boxes.
    cfg.MODEL.LOC.TOKEN_TEMPERATURE = 20.0
    cfg.MODEL.LOC.BOX_TEMPERATURE = 10000.0
    # One box head for both refinement and output (True, as in DINO), or two with separate weights (False, reference).
    cfg.MODEL.LOC.TIE_BOX_HEADS = True
    # Number of logits and of label embeddings (for denoising) of each decoder, and the logit index of a dataset's first
    # class. NUM_LOGITS 0: FIRST_CLASS plus the number of classes; LABEL_ROWS 0: as many as logits. Reference: 14, 16,
    # and 1, because it indexes by category id.
    cfg.MODEL.LOC.NUM_LOGITS = 0
    cfg.MODEL.LOC.LABEL_ROWS = 0
    cfg.MODEL.LOC.FIRST_CLASS = 0
    # Query selection: rank padding and border tokens by their constant score among all others (True, reference), or
    # select them only when no other token is left (False).
    cfg.MODEL.LOC.RANK_ALL_TOKENS = False
    # Implementation of the sampling in deformable attention: "torch" (plain torch operators), "cpp" (C++ for CPUs;
    # compiled within seconds on first use, then cached), "triton" (GPUs; tested only in Triton's interpreter), or
    # "auto": "cpp" on a CPU with a compiler, else "torch". Results agree up to rounding. On a GPU, two runs differ by
    # as much with any of them, because gradients are accumulated in no fixed order.
    cfg.MODEL.LOC.SAMPLER = "auto"
    # Denoising queries, as in DINO: approximate number of (positive, negative) pairs per image (0 = off); twice the
    # probability that a label is replaced by a random one; box noise relative to half the box size.
    cfg.MODEL.LOC.DN_NUMBER = 100
    cfg.MODEL.LOC.DN_LABEL_NOISE = 0.5
    cfg.MODEL.LOC.DN_BOX_NOISE = 1.0
    # Loss weights and matching costs, from DINO. ENC: weight of the loss on the encoder's proposals (reference: 0).
    cfg.MODEL.LOC.LOSS = CN({"CLASS": 1.0, "L1": 5.0, "GIOU": 2.0, "ENC": 1.0})
    cfg.MODEL.LOC.COST = CN({"CLASS": 2.0, "L1": 5.0, "GIOU": 2.0})
    cfg.MODEL.LOC.FOCAL_ALPHA = 0.25
    cfg.MODEL.LOC.FOCAL_GAMMA = 2.0
    # Epsilon added to the denominators of generalized IoU (reference: 1e-6, which biases boxes of a few pixels).
    cfg.MODEL.LOC.GIOU_EPS = 0.0
    # Boxes kept per image at inference: the top scores over queries x classes (reference: 300).
    cfg.MODEL.LOC.NUM_SELECT = 100
    # Gradient checkpointing of the encoder and decoder layers: less memory, slower.
    cfg.MODEL.LOC.GRAD_CHECKPOINTING = False


def _add_training(cfg: CN) -> None:
    # The training cycle. STRATEGY: rows in the format of PAPER_STRATEGY, from which each dataset's passes follow.
    cfg.SCHEDULE = CN()
    cfg.SCHEDULE.STRATEGY = copy.deepcopy(PAPER_STRATEGY)
    cfg.SCHEDULE.CYCLES = 150
    # Order of the datasets in a cycle: "listed", as in DATASETS.TRAIN; "shuffled", a new random order in each cycle,
    # from SEED; "largest_first" or "smallest_first", by the number of annotated training images.
    cfg.SCHEDULE.ORDER = "listed"
    # Visits per cycle, {dataset name: count}, spread evenly over the cycle; datasets not listed are visited once.
    cfg.SCHEDULE.REPEAT = CN(new_allowed=True)
    # Maximum number of steps per pass (0 = no limit).
    cfg.SCHEDULE.ITERS_PER_PASS = 0
    # Batch size: images per step over all processes, per task.
    cfg.SCHEDULE.BATCH_SIZE = CN({"CLS": 24, "LOC": 24, "SEG": 24})


def _add_solver(cfg: CN) -> None:
    # "adamw", or "sgd" with Detectron2's SOLVER.MOMENTUM and SOLVER.NESTEROV (used by the reference for fine-tuning).
    cfg.SOLVER.OPTIMIZER = "adamw"
    cfg.SOLVER.BASE_LR = 1e-4
    # Weight decay of matrices; of norms and other scales (_NORM); of biases (_BIAS); and of embeddings and position
    # tables (_EMBED, Mask2Former's key).
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Learning-rate multiplier of each component, relative to BASE_LR.
    cfg.SOLVER.LR_FACTOR = CN(
        {"BACKBONE": 0.1, "CLS_HEADS": 0.1, "LOC_ENCODER": 1.0, "LOC_DECODERS": 1.0}
        | {"SEG_DECODER": 1.0, "SEG_HEADS": 1.0}
    )
    # Layer-wise learning-rate decay of the backbone, for fine-tuning: the factor from each block to the one before it,
    # and to the stem (1 = off).
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Linear scaling rule: multiply the learning rate of a task's steps by its SCHEDULE.BATCH_SIZE / REFERENCE_BATCH
    # (0 = off).
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Linear warm-up over this many cycles (reference: 20 slots = one cycle), then cosine decay to FINAL_LR_FACTOR;
    # LR_UPDATE: the rate is updated at each "step", or once per "cycle" (reference).
    cfg.SOLVER.WARMUP_CYCLES = 1.0
    cfg.SOLVER.FINAL_LR_FACTOR = 0.0
    cfg.SOLVER.LR_UPDATE = "step"
    # Maximum gradient norm, per task; 0 = no clipping. The reference clips in localization only.
    cfg.SOLVER.CLIP_NORM = CN({"CLS": 0.0, "LOC": 0.1, "SEG": 0.0})
    # Gradient accumulation: maximum number of images per forward pass of a process, per task. Larger batches are split
    # and their gradients summed. 0 = no splitting.
    cfg.SOLVER.MICRO_BATCH = CN({"CLS": 0, "LOC": 0, "SEG": 0})
    # Autocast dtype if SOLVER.AMP.ENABLED: "bfloat16" (CPU or GPU) or "float16" (GPU only, with loss scaling).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Save a checkpoint at the end of every N-th cycle and of the run, every N steps, and once this many minutes have
    # passed since the last one (steps and minutes: 0 = off).
    cfg.SOLVER.CHECKPOINT_CYCLES = 1
    cfg.SOLVER.CHECKPOINT_STEPS = 0
    cfg.SOLVER.CHECKPOINT_MINUTES = 30.0
    # Checkpoints to keep: the last CHECKPOINTS_TO_KEEP (two, in case one is damaged), and in addition that of every
    # CHECKPOINT_KEEP_CYCLES-th cycle (0 = none).
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    cfg.SOLVER.CHECKPOINT_KEEP_CYCLES = 0
    # Metric patterns such as "student/*/cls/auroc". For each, the checkpoint with the highest mean over the matching
    # metrics at any evaluation (TEST.EVAL_PASSES, TEST.EVAL_CYCLES, end of training) is kept as
    # model_best_<pattern>.pth. An error if TEST.SPLIT is "test".
    cfg.SOLVER.CHECKPOINT_BEST = []


def _add_evaluation(cfg: CN) -> None:
    # Evaluate after every N-th pass and every N-th cycle (0 = off), and always at the end of training.
    cfg.TEST.EVAL_PASSES = 0
    cfg.TEST.EVAL_CYCLES = 0
    # Split to evaluate of the datasets in DATASETS.TEST: "train", "val" or "test". Empty: during and after training
    # "val", since models are selected on it; with --eval-only the splits as listed in DATASETS.TEST.
    cfg.TEST.SPLIT = ""
    # Models to evaluate: "student", "teacher" or both.
    cfg.TEST.MODELS = ["student", "teacher"]
    cfg.TEST.BATCH_SIZE = 16
    # Number of bootstrap resamples (by patient) for 95 % confidence intervals (0 = no intervals), and their seed.
    cfg.TEST.BOOTSTRAP = 1000
    cfg.TEST.BOOTSTRAP_SEED = 0
    # Specificity at which sensitivity is reported and operating points are selected on validation splits.
    cfg.TEST.SPECIFICITY = 0.9
    # IoU threshold for a true positive in FROC.
    cfg.TEST.FROC_IOU = 0.2
    # Also compute the 95th-percentile Hausdorff distance of masks, in original pixels; slow for large images.
    cfg.TEST.HAUSDORFF = False
    # Save predictions to <OUTPUT_DIR>/inference/predictions_<which>.json for tools/visualize_predictions.py: boxes with
    # a score above SAVE_SCORE_THRESH, masks as RLE.
    cfg.TEST.SAVE_PREDICTIONS = True
    cfg.TEST.SAVE_SCORE_THRESH = 0.05
    # Save per-image scores to <OUTPUT_DIR>/inference/scores_<which>_<split>.npz.
    cfg.TEST.SAVE_SCORES = True
    # Also run each image through the classification heads of other datasets in DATASETS.TRAIN that share a class with
    # its own dataset, and compare the predictions. Costs one forward pass per additional head.
    cfg.TEST.CROSS_HEADS = False
    # File of operating points to apply. Empty: operating_points.json in the folder of MODEL.WEIGHTS, if it exists.
    cfg.TEST.OPERATING_POINTS = ""
