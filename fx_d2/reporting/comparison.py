"""Paired comparison of two runs on the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fx_d2.evaluation import Paired, paired_differences, read_scores
from fx_d2.evaluation.report import LABELS
from fx_d2.reporting.runs import Results, Run, dataset_of
from fx_d2.reporting.tables import Table, difference, percent
from fx_d2.structures import FXError

Side = tuple[Run, str]
"""A run, and one of its models."""


@dataclass
class Comparer:
    """Paired bootstrap of runs; results are cached.

    Attributes:
        draws: number of bootstrap resamples of patients; 0 = no comparison.
        seed: seed of the resamples.
    """

    draws: int = 1000
    seed: int = 0
    _found: dict[tuple[str, ...], Mapping[str, Paired]] = field(default_factory=dict, init=False)

    def on_split(self, first: Side, second: Side, split: str) -> Mapping[str, Paired]:
        """`paired_differences` of two models on a split; {} if either has no scores file."""
        files = [_scores_file(run.results, which, split) for run, which in (first, second)]
        if not self.draws or None in files:
            return {}
        key = (first[0].name, first[1], second[0].name, second[1], split)
        if key not in self._found:
            arrays = [read_scores(str(file)) for file in files]
            self._found[key] = paired_differences(*arrays, draws=self.draws, seed=self.seed)
        return self._found[key]


def find_side(text: str, runs: Sequence[Run]) -> Side:
    """The run and model named by "NAME" (its first model) or "NAME:MODEL"; FXError if there is none."""
    names = {run.name: run for run in runs}
    name, _, which = text.rpartition(":") if text not in names else (text, "", "")
    run = names.get(name)
    if run is None or run.results is None:
        raise FXError(f"--compare {text}: no evaluated run of that name; runs are {sorted(names)}")
    which = which or run.results.models[0]
    if which not in run.results.models:
        raise FXError(f"--compare {text}: {name} has no {which}, only {', '.join(run.results.models)}")
    return run, which


def comparison_table(key: str, first: Side, second: Side, comparer: Comparer) -> Table:
    """All metrics with intervals, of two models, on the splits on which both were evaluated.

    Raises:
        FXError: they have no split in common, or scores files are missing.
    """
    names = [f"{run.name} ({which})" for run, which in (first, second)]
    results = [run.results for run, _ in (first, second) if run.results is not None]
    shared = [split for split in results[0].splits if all(split in other.splits for other in results)]
    if not shared:
        raise FXError(f"{names[0]} and {names[1]} were not evaluated on a common split: nothing to compare")
    rows = []
    left_out = sorted({split for result in results for split in result.splits} - set(shared))
    for split in shared:
        pairs = comparer.on_split(first, second, split)
        left_out += [] if pairs else [split]
        for name, pair in pairs.items():
            task, _, metric = name.partition("/")
            if metric in LABELS:
                cells = percent(pair.first), percent(pair.second)
                gain = difference(*cells, pair.interval)
                if gain:
                    rows.append((split, task, LABELS[metric], *cells, gain, percent(pair.better)))
    if not rows:
        raise FXError(f"{names[0]} and {names[1]}: no scores files to compare; TEST.SAVE_SCORES True writes them")
    notes = [
        f"95 % intervals of the difference from {comparer.draws} bootstrap resamples of patients, the same for both "
        "models; not corrected for multiple comparisons"
    ]
    notes += [f"not compared (needs scores of both models): {', '.join(left_out)}"] * bool(left_out)
    return Table(
        key=key,
        title=f"{names[1]} vs. {names[0]}",
        columns=("split", "task", "metric", names[0], names[1], "difference", "resamples > 0, %"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _scores_file(results: Results | None, which: str, split: str) -> str | None:
    name = results.splits.get(split) if results is not None else None
    file = results.scores.get(f"{which}/{name}") if results is not None and name else None
    return str(results.folder / file) if results is not None and file else None


def same_split(runs: Sequence[Run], dataset: str) -> str | None:
    """The split of a dataset on which most runs were evaluated, test in case of a tie; None if there is none."""
    found = Counter(
        split for run in runs if run.results for split in run.results.splits if dataset_of(split) == dataset
    )
    return max(found, key=lambda split: (found[split], split.endswith("_test")), default=None)
