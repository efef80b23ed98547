"""How far our metrics are from independent implementations, as the table of docs/results.md.

python tests/evaluation/agreement.py [--cases 300]

A case is a small random set, full of ties, duplicates, unknown labels and empty images; undefined must meet undefined.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from fx_d2.evaluation import auroc
from fx_d2.evaluation.bootstrap import patient_weights
from fx_d2.evaluation.calibration import calibration_error
from fx_d2.evaluation.matching import FALSE_POSITIVES, froc, sensitivities
from fx_d2.evaluation.ranking import RankedClass
from fx_d2.evaluation.segmentation import hausdorff95, overlap


def load(name: str) -> ModuleType:
    """A test module beside this file: its references are used here."""
    spec = importlib.util.spec_from_file_location(f"agreement_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MATCHING, SEGMENTATION, CALIBRATION, RANKING = (
    load(f"test_{name}") for name in ("matching", "segmentation", "calibration", "ranking")
)
average_precision = RANKING.average_precision


def difference(ours: object, theirs: object) -> float:
    """Largest absolute difference; infinite where only one of the two is undefined."""
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    if (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def ranking(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    count, levels = int(rng.integers(1, 200)), int(rng.choice([1, 3, 20, 10**6]))
    labels = rng.choice([0.0, 1.0, np.nan], count, p=[0.6, 0.3, 0.1])
    return (rng.integers(0, levels, count) / levels).astype(np.float32), labels


def of_scikit_learn(metric: Callable, reference: Callable) -> Callable[[np.random.Generator], float]:
    def compare(rng: np.random.Generator) -> float:
        scores, labels = ranking(rng)
        known = ~np.isnan(labels)
        defined = len(set(labels[known])) == 2
        return difference(metric(scores, labels), reference(labels[known], scores[known]) if defined else np.nan)

    return compare


def of_copied_images(rng: np.random.Generator) -> float:
    scores, labels = ranking(rng)
    patients = [str(p) for p in rng.integers(0, 30, len(scores))]
    weights = next(patient_weights(patients, 20, int(rng.integers(10**6))))
    found = RankedClass(scores, labels).metrics(weights)
    copies = [np.repeat(np.arange(len(scores)), row) for row in weights]
    expected = [[metric(scores[c], labels[c]) for c in copies] for metric in (auroc, average_precision)]
    return difference(found, expected)


def of_pycocotools(which: int) -> Callable[[np.random.Generator], float]:
    def compare(rng: np.random.Generator) -> float:
        most, levels = int(rng.choice([0, 3, 30, 150])), int(rng.choice([1, 4, 1000]))
        classes, crowd = int(rng.integers(1, 4)), float(rng.choice([0, 0.3]))
        images = MATCHING.draw(int(rng.integers(10**6)), classes, most, levels, crowd, int(rng.choice([0, 10])))
        return difference(MATCHING.ours(images, classes)[which], MATCHING.pycocotools(images, classes)[which])

    return compare


def of_every_threshold(rng: np.random.Generator) -> float:
    count, levels, images = int(rng.integers(0, 60)), int(rng.choice([1, 3, 100])), int(rng.integers(1, 20))
    scores = -np.sort(-(rng.integers(0, levels, count) / levels).astype(np.float32))
    hits = rng.choice([1, 0, 0, -1], count).astype(np.int8)
    positives = max(1, int((hits == 1).sum()) + int(rng.integers(0, 3)))
    expected = [MATCHING.brute_force_froc(scores, hits, positives, images, rate) for rate in FALSE_POSITIVES]
    return difference(sensitivities(*froc(scores, hits, positives, images)), expected)


def masks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    density = rng.choice([0.0, 0.02, 0.3, 1.0], 2)[:, None, None]
    return tuple(rng.random((2, 24, 31)) < density)


def of_pixel_sets(rng: np.random.Generator) -> float:
    a, b = masks(rng)
    return difference(overlap(a, b)[0], SEGMENTATION.brute_force(a, b))


def of_outline_pairs(rng: np.random.Generator) -> float:
    a, b = masks(rng)
    defined = a.any() and b.any()
    return difference(hausdorff95(a, b), SEGMENTATION.brute_force_hausdorff(a, b) if defined else np.nan)


def of_bins(rng: np.random.Generator) -> float:
    scores, labels = ranking(rng)
    known = ~np.isnan(labels)
    expected = CALIBRATION.brute_force(scores[known], labels[known]) if known.any() else np.nan
    return difference(calibration_error(scores, labels), expected)


ROWS = (
    ("AUROC", "scikit-learn", of_scikit_learn(auroc, roc_auc_score)),
    ("average precision of labels", "scikit-learn", of_scikit_learn(average_precision, average_precision_score)),
    ("both in a bootstrap draw", "the images drawn, copied", of_copied_images),
    ("AP at 12 overlaps, 0.40 to 0.95", "pycocotools", of_pycocotools(0)),
    ("AR1, AR10, AR100 at 12 overlaps", "pycocotools", of_pycocotools(1)),
    ("FROC at 7 rates", "every threshold tried", of_every_threshold),
    ("Dice", "sets of pixels", of_pixel_sets),
    ("95 % Hausdorff distance, pixels", "all pairs of outline pixels", of_outline_pairs),
    ("calibration error", "a loop over bins", of_bins),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="random cases a row")
    cases = parser.parse_args().cases
    print("| metric | against | cases | largest difference |\n|--|--|--|--|")
    for name, reference, compare in ROWS:
        worst = max(compare(np.random.default_rng(seed)) for seed in range(cases))
        print(f"| {name} | {reference} | {cases} | {worst:.1e} |")


if __name__ == "__main__":
    main()
