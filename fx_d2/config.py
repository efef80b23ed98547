"""Every configuration key of fx_d2, once, under a sentence that says what it does."""

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
"""The paper's table of passes: one row a pass, in the order they run on a dataset.

A row may also have "passes" (it runs so often, one after the other, each time with images drawn anew), "steps" (at most
so many in a pass) and "datasets" (names; it is for these only).
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
    # Folder of prepared annotation files, <ROOT>/<name>/{train,val,test}.json. Empty: $DETECTRON2_DATASETS,
    # else ./datasets/prepared. DATASETS.TRAIN and DATASETS.TEST hold names "<row>_<split>" as in Detectron2.
    cfg.DATASETS.ROOT = ""
    # The tasks that the datasets are used for, of those they are annotated for: heads, passes and evaluation follow.
    cfg.DATASETS.TASKS = ["cls", "loc", "seg"]
    # The classes that are used, of every dataset and task; empty: all. Boxes of other classes are left out.
    cfg.DATASETS.CLASSES = []
    # Train on IMAGES images of each dataset (0 = all), drawn by SEED, each of another patient as long as there are
    # such, and annotated for every task in use. A smaller draw of the same seed is part of a larger one. Validation
    # and test splits stay whole.
    cfg.DATASETS.FEW_SHOT = CN({"IMAGES": 0, "SEED": 0})
    # Limit each dataset to its first N images per split, for a trial (0 = all).
    cfg.DATASETS.LIMIT = 0
    # File of training images to leave out, written by tools/check_datasets.py --exclude: films that are in another
    # dataset's test split as well. Empty: none.
    cfg.DATASETS.EXCLUDE = ""

    # Images are resized to this (height, width) in pixels, aspect ratio not kept, as in the reference recipe.
    cfg.INPUT.SIZE = [224, 224]
    # Reduce images to this shorter side in pixels as they are read, before augmentation (0: full size). A cache made
    # when the dataset was prepared (--cache-size) holds the same pixels and is quicker; it must not be smaller.
    cfg.INPUT.READ_SIZE = 0
    # Grey values of the network's input, in 0..255: "uint8", or "float32", which keeps all the depth of 12- and 16-bit
    # images and does without a cache.
    cfg.INPUT.DTYPE = "uint8"
    # What the teacher sees: "same" tensor as the student, or its own "photometric" view (geometry must agree,
    # because tokens and maps are compared position by position).
    cfg.INPUT.TEACHER_VIEW = "photometric"
    # Augmentation per task. FLIP: probability of a left-right flip (classes with a side are swapped);
    # CROP_AREA: smallest area of a random crop relative to the image (1 = no crop; reference: 0.08 for classification);
    # ROTATE: degrees; SCALE, SHIFT: relative range of a random affine window; BRIGHTNESS, CONTRAST: +- relative range;
    # PROB: probability of the affine window, and apart from it of the change of light.
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
    # Which model of the file MODEL.WEIGHTS a training starts from: "student" or "teacher". Empty: the student, or the
    # only one; of Ark its teacher, as its authors recommend.
    cfg.MODEL.WEIGHTS_FROM = ""
    # Compile with torch.compile what keeps its shapes through a training: the trunk's blocks, the encoder's layers, the
    # segmentation decoder. The name of a backend, usually "inductor"; empty: nothing. Each kind of pass takes longer
    # the first time. Results are the same but for the last bits and for what is drawn at random (DROP_PATH, DROPOUT).
    cfg.MODEL.COMPILE = ""
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    # Grey images: one value each, or three for a stem that was trained with a channel's own. In units of [0, 255];
    # the model normalises, and only once.
    # Mean .5056 and std .252 are the reference recipe's chest X-ray statistics (classification branch).
    cfg.MODEL.PIXEL_MEAN = [0.5056 * 255]
    cfg.MODEL.PIXEL_STD = [0.252 * 255]

    # The trunk, any timm model that works with features_only. KWARGS go to timm.create_model as they are.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "swin_base_patch4_window7_224"
    cfg.MODEL.TIMM.KWARGS = CN(new_allowed=True)
    cfg.MODEL.TIMM.DROP_PATH = 0.2
    # 3: the grey image is repeated, which fits ImageNet weights; 1: a one-channel stem.
    cfg.MODEL.TIMM.IN_CHANS = 3
    # Recompute activations in the backward pass: less memory, about 20 % slower.
    cfg.MODEL.TIMM.GRAD_CHECKPOINTING = False
    # Compute the trunk's attention with torch's fused kernels, where timm's model has a place for them: Swin-T and -B
    # are 3 to 7 % faster in evaluation, on one CPU core. A Swin that learns on a CPU computes as timm does, which is 4
    # to 7 % faster there.
    cfg.MODEL.TIMM.FUSED_ATTENTION = True
    # The stem and this many stages of the trunk never learn, whatever a pass trains (0 = all of it learns).
    cfg.MODEL.TIMM.FROZEN_STAGES = 0

    # Segmentation: pyramid pooling on the last stage, fused pyramid (shared), 3x3 head per dataset.
    cfg.MODEL.SEG = CN()
    cfg.MODEL.SEG.DIM = 128
    cfg.MODEL.SEG.POOL_BINS = [1, 2, 4, 6]
    cfg.MODEL.SEG.DROPOUT = 0.1
    # Norm of the decoder's convolutions, a Detectron2 name: BN (reference), SyncBN, GN.
    cfg.MODEL.SEG.NORM = "BN"
    # Dice over the whole flattened batch ("batch", the reference) or per class, then averaged ("class").
    cfg.MODEL.SEG.DICE = "class"
    # Region guidance (Foundation X+): the trunk's features f enter the segmentation decoder as
    # (1 - WEIGHT) * f + WEIGHT * f * map, where the map is 1 inside the boxes that the dataset's localization decoder
    # finds above SCORE, their area grown by AREA, and falls off outside. The same in training and at test;
    # datasets without boxes are not guided. WEIGHT 0 = off (Foundation X); Foundation X+: 0.5.
    cfg.MODEL.SEG.REGION = CN({"WEIGHT": 0.0, "SCORE": 0.3, "AREA": 1.5})

    # EMA teacher. CONSISTENCY = c in (1 - c) * task + c * consistency; 0 or ENABLED False switches the teacher and its
    # cost off. UPDATE: at the end of each "pass" (reference) or after each "step", which wants a momentum near 1.
    # SCHEDULE: "constant" MOMENTUM (reference), "cosine" from MOMENTUM to MOMENTUM_END over the run, or "warmup",
    # min(MOMENTUM, (1 + n) / (10 + n)) at the n-th update.
    cfg.MODEL.TEACHER = CN()
    cfg.MODEL.TEACHER.ENABLED = True
    cfg.MODEL.TEACHER.UPDATE = "pass"
    cfg.MODEL.TEACHER.SCHEDULE = "constant"
    cfg.MODEL.TEACHER.MOMENTUM = 0.8
    cfg.MODEL.TEACHER.MOMENTUM_END = 1.0
    cfg.MODEL.TEACHER.CONSISTENCY = 0.5


def _add_localization(cfg: CN) -> None:
    # Localization: DINO-style encoder (shared) and decoders (one per dataset). Reference: 256, 8, 4, 2048, 6, 6, 900.
    cfg.MODEL.LOC = CN()
    cfg.MODEL.LOC.HIDDEN_DIM = 256
    cfg.MODEL.LOC.NUM_HEADS = 8
    cfg.MODEL.LOC.NUM_POINTS = 4
    cfg.MODEL.LOC.FFN_DIM = 2048
    cfg.MODEL.LOC.ENC_LAYERS = 6
    cfg.MODEL.LOC.DEC_LAYERS = 6
    cfg.MODEL.LOC.NUM_QUERIES = 300
    # Trunk stages (0-based) that feed the encoder; one further level is made by a strided convolution.
    cfg.MODEL.LOC.STAGES = [1, 2, 3]
    # One stack of decoder layers for all datasets, locked and released with the encoder; queries and heads stay the
    # datasets' own (Foundation X+). False: a whole decoder for each dataset (Foundation X).
    cfg.MODEL.LOC.SHARED_DECODER = False
    # Temperatures of the sine position encodings of tokens and of boxes.
    cfg.MODEL.LOC.TOKEN_TEMPERATURE = 20.0
    cfg.MODEL.LOC.BOX_TEMPERATURE = 10000.0
    # One box head for refinement and output (True, DINO) or two with separate weights (False, the reference's layout).
    cfg.MODEL.LOC.TIE_BOX_HEADS = True
    # Logits and label embeddings of every decoder, and the column of a dataset's first class. 0 logits or rows: as
    # many as the dataset has classes. The reference: 14, 16, and 1 (it uses category ids, which start there).
    cfg.MODEL.LOC.NUM_LOGITS = 0
    cfg.MODEL.LOC.LABEL_ROWS = 0
    cfg.MODEL.LOC.FIRST_CLASS = 0
    # Let padding and the outermost border compete for queries by their constant score (True, the reference), or
    # choose them only when nothing else is left (False).
    cfg.MODEL.LOC.RANK_ALL_TOKENS = False
    # How deformable attention computes its samples: "torch" (torch's operators), "cpp" (C++, on CPUs; compiled in
    # seconds on first use, kept for the next), "triton" (GPUs; tested in Triton's interpreter only), or "auto": C++ on
    # a CPU where a compiler is found, else torch. The result is the same but for the last bits. Two trainings on a GPU
    # differ in these whatever is chosen: there, gradients are added up in no fixed order.
    cfg.MODEL.LOC.SAMPLER = "auto"
    # Denoising: number of noised (positive + negative) pairs, label flip probability, box noise scale. 0 pairs = off.
    cfg.MODEL.LOC.DN_NUMBER = 100
    cfg.MODEL.LOC.DN_LABEL_NOISE = 0.5
    cfg.MODEL.LOC.DN_BOX_NOISE = 1.0
    # Losses and matching costs, from DINO. ENC weighs the loss on the encoder's proposals (reference: 0).
    cfg.MODEL.LOC.LOSS = CN({"CLASS": 1.0, "L1": 5.0, "GIOU": 2.0, "ENC": 1.0})
    cfg.MODEL.LOC.COST = CN({"CLASS": 2.0, "L1": 5.0, "GIOU": 2.0})
    cfg.MODEL.LOC.FOCAL_ALPHA = 0.25
    cfg.MODEL.LOC.FOCAL_GAMMA = 2.0
    # Added to the areas by which generalized IoU divides (reference: 1e-6, which biases boxes of a few pixels).
    cfg.MODEL.LOC.GIOU_EPS = 0.0
    # Boxes kept per image at inference: the best of queries x classes (reference: 300).
    cfg.MODEL.LOC.NUM_SELECT = 100
    # Recompute the layers of encoder and decoder in the backward pass: less memory, more time.
    cfg.MODEL.LOC.GRAD_CHECKPOINTING = False


def _add_training(cfg: CN) -> None:
    # The cycle. STRATEGY: rows as in PAPER_STRATEGY; the passes of every dataset follow from it.
    cfg.SCHEDULE = CN()
    cfg.SCHEDULE.STRATEGY = copy.deepcopy(PAPER_STRATEGY)
    cfg.SCHEDULE.CYCLES = 150
    # The order of the datasets in a cycle: "listed" as in DATASETS.TRAIN; "shuffled", drawn anew in every cycle from
    # SEED; "largest_first" or "smallest_first" by annotated training images.
    cfg.SCHEDULE.ORDER = "listed"
    # How often a dataset is visited in a cycle, {name: times}, evenly spread over it; datasets not named: once.
    cfg.SCHEDULE.REPEAT = CN(new_allowed=True)
    # At most this many steps a pass (0 = no cap).
    cfg.SCHEDULE.ITERS_PER_PASS = 0
    # Images a step over all processes, per task.
    cfg.SCHEDULE.BATCH_SIZE = CN({"CLS": 24, "LOC": 24, "SEG": 24})


def _add_solver(cfg: CN) -> None:
    # "adamw", or "sgd" with Detectron2's SOLVER.MOMENTUM and NESTEROV (the reference fine-tunes with it).
    cfg.SOLVER.OPTIMIZER = "adamw"
    cfg.SOLVER.BASE_LR = 1e-4
    # Decay of matrices; of norms and other scales; of biases; of embeddings and position tables (Mask2Former's key).
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # LR of a component = BASE_LR times this.
    cfg.SOLVER.LR_FACTOR = CN(
        {"BACKBONE": 0.1, "CLS_HEADS": 0.1, "LOC_ENCODER": 1.0, "LOC_DECODERS": 1.0}
        | {"SEG_DECODER": 1.0, "SEG_HEADS": 1.0}
    )
    # In the trunk times this from each block to the one before it, and to the stem; 1 = off. For fine-tuning.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # LR of a task's steps times SCHEDULE.BATCH_SIZE of the task / this; 0 = as it is.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Linear warm-up over this many cycles (reference: 20 slots = one cycle), then half-cosine to FINAL_LR_FACTOR;
    # followed at each "step", or set once a "cycle" (reference).
    cfg.SOLVER.WARMUP_CYCLES = 1.0
    cfg.SOLVER.FINAL_LR_FACTOR = 0.0
    cfg.SOLVER.LR_UPDATE = "step"
    # Largest gradient norm of a step, per task; 0 = no clipping. Reference: localization only.
    cfg.SOLVER.CLIP_NORM = CN({"CLS": 0.0, "LOC": 0.1, "SEG": 0.0})
    # At most this many images go through the network of a process at a time, per task; a larger batch is divided, and
    # its gradients are added up. 0 = all of a process's images.
    cfg.SOLVER.MICRO_BATCH = CN({"CLS": 0, "LOC": 0, "SEG": 0})
    # Autocast type when SOLVER.AMP.ENABLED: "bfloat16" (CPU or GPU) or "float16" (GPU, with loss scaling).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Save a checkpoint at the end of every N-th cycle, and at the end; and inside a cycle after every N steps and
    # when this many minutes have passed since the last one (0 = off).
    cfg.SOLVER.CHECKPOINT_CYCLES = 1
    cfg.SOLVER.CHECKPOINT_STEPS = 0
    cfg.SOLVER.CHECKPOINT_MINUTES = 30.0
    # Checkpoints kept: the last ones (two, so that one may be damaged), and those at the end of every N-th cycle (0 =
    # none besides).
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    cfg.SOLVER.CHECKPOINT_KEEP_CYCLES = 0
    # Keep model_best_<pattern>.pth for each pattern of metrics, such as "student/*/cls/auroc", whose mean is highest
    # at an evaluation (TEST.EVAL_PASSES, TEST.EVAL_CYCLES). Refused where TEST.SPLIT is "test".
    cfg.SOLVER.CHECKPOINT_BEST = []


def _add_evaluation(cfg: CN) -> None:
    # Evaluate at the end of every N-th pass and of every N-th cycle (0: not there), and at the end of training.
    cfg.TEST.EVAL_PASSES = 0
    cfg.TEST.EVAL_CYCLES = 0
    # The split that is evaluated, of the datasets that DATASETS.TEST names: "train", "val" or "test". Empty: "val" in
    # and after a training, which chooses models by it; with --eval-only the splits as DATASETS.TEST names them.
    cfg.TEST.SPLIT = ""
    # Which models: "student", "teacher".
    cfg.TEST.MODELS = ["student", "teacher"]
    cfg.TEST.BATCH_SIZE = 16
    # Draws of patients behind each 95 % bootstrap interval (0 = no intervals), and their seed.
    cfg.TEST.BOOTSTRAP = 1000
    cfg.TEST.BOOTSTRAP_SEED = 0
    # Sensitivity is given at this specificity, at which operating points are chosen on validation splits.
    cfg.TEST.SPECIFICITY = 0.9
    # IoU from which a box is a hit in FROC.
    cfg.TEST.FROC_IOU = 0.2
    # Also give the 95 % Hausdorff distance of masks, in original pixels; slow for large images.
    cfg.TEST.HAUSDORFF = False
    # Keep predictions in <OUTPUT_DIR>/inference/predictions_<which>.json for tools/visualize_predictions.py:
    # boxes above this score; masks as RLE.
    cfg.TEST.SAVE_PREDICTIONS = True
    cfg.TEST.SAVE_SCORE_THRESH = 0.05
    # Keep scores of single images in <OUTPUT_DIR>/inference/scores_<which>_<split>.npz.
    cfg.TEST.SAVE_SCORES = True
    # Show every image also to those classification heads of other datasets of DATASETS.TRAIN that share a finding
    # with its own, and compare what they say. Costs a pass of the model for each such head.
    cfg.TEST.CROSS_HEADS = False
    # File of operating points to apply. Empty: operating_points.json beside MODEL.WEIGHTS, if it is there.
    cfg.TEST.OPERATING_POINTS = ""
