"""Building a report from runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fx_d2.evaluation.report import NOTICE
from fx_d2.reporting.baselines import baseline_tables, is_joint
from fx_d2.reporting.comparison import Comparer, comparison_table, find_side
from fx_d2.reporting.document import Document, Section, slug
from fx_d2.reporting.gallery import galleries
from fx_d2.reporting.paper import PaperTable
from fx_d2.reporting.run_sections import (
    classes_section,
    curves_section,
    groups_section,
    heads_section,
    protocol,
    protocol_section,
    training_section,
)
from fx_d2.reporting.runs import Run
from fx_d2.reporting.tables import Cell, Table, count
from fx_d2.reporting.transfer import is_few_shot, transfer_tables
from fx_d2.structures import FXError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report holds.

    Attributes:
        paper: published tables to report next to ours.
        compare: pairs of "NAME" or "NAME:MODEL" to compare.
        draws: bootstrap resamples of patients behind the intervals of differences; 0 = no intervals.
        seed: seed of the resamples.
        pictures: gallery images per kind, task and split; 0 = none.
        root: folder of prepared datasets; empty = that of each run's config.
    """

    paper: tuple[PaperTable, ...] = ()
    compare: tuple[tuple[str, str], ...] = ()
    draws: int = 1000
    seed: int = 0
    pictures: int = 3
    root: str = ""


def build_report(runs: Sequence[Run], options: ReportOptions) -> Document:
    """Build the report of one or more runs.

    Raises:
        FXError: runs cannot be compared, the names of runs or tables give the same file name, or a file cannot be read.
    """
    names = [slug(run.name) for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        alike = ", ".join(run.name for run in runs if slug(run.name) in twice)
        raise FXError(f"{alike}: their files would have the same name; give other names, NAME=PATH")
    comparer = Comparer(options.draws, options.seed)
    tables = [*baseline_tables(runs, options.paper, comparer), *transfer_tables(runs, options.paper)]
    pairs = [(find_side(first, runs), find_side(second, runs)) for first, second in options.compare]
    compared = [comparison_table(f"compared_{i}", *pair, comparer) for i, pair in enumerate(pairs, 1)]
    sections = [
        Section(key="runs", title="Runs", tables=(_runs_table(runs),)),
        Section(key="tables", title="Tables", tables=tuple(tables)),
        Section(key="compared", title="Runs compared", tables=tuple(compared)),
    ]
    shown = _shown(runs)
    if len(shown) < len(runs):
        text = (
            "Few-shot runs appear only in their table. A report of a single one also has its curves and class tables."
        )
        sections.append(Section(key="not-shown", title="Runs without a section", text=(text,)))
    sections += [_run_section(run, options) for run in shown]
    facts = {"runs": {run.name: protocol(run) | {"settings": run.settings} for run in runs}}
    document = Document(
        title="Foundation X report", notice=NOTICE, sections=tuple(s for s in sections if not s.empty), facts=facts
    )
    keys = [slug(table.key) for table in document.tables()]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise FXError(
            f"two tables would be named {', '.join(sorted(twice))}: give the run (NAME=PATH) or the published table "
            "another name"
        )
    return document


def _shown(runs: Sequence[Run]) -> list[Run]:
    """Runs with a section of their own; a few-shot series consists of dozens of similar runs."""
    if len(runs) == 1:
        return list(runs)
    return sorted((run for run in runs if not is_few_shot(run)), key=lambda run: not is_joint(run))


def _run_section(run: Run, options: ReportOptions) -> Section:
    parts = [training_section(run)]
    if run.results is not None:
        makers = (classes_section, curves_section, groups_section, heads_section)
        parts += [make(run, run.results) for make in makers]
        if options.pictures:
            parts.append(galleries(run.results, run.name, options.root, options.pictures))
    parts.append(protocol_section(run))
    kept = tuple(_without_empty(part) for part in parts if not part.empty)
    return Section(key=slug(f"run-{run.name}"), title=run.name, text=(run.recipe.describe() + ".",), parts=kept)


def _without_empty(section: Section) -> Section:
    return replace(section, parts=tuple(_without_empty(part) for part in section.parts if not part.empty))


def _runs_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        results = run.results
        splits = sorted({split.rpartition("_")[2] for split in results.splits}) if results else []
        digest = next(iter(results.meta["weights_hash"].values()), "")[7:19] if results else ""
        passes: Cell = count(len(run.history)) if run.history else ""
        when = str(results.meta.get("time", ""))[:16].replace("T", " ") if results else ""
        rows.append((run.name, run.recipe.describe(), str(run.recipe.seed), ", ".join(splits), digest, when, passes))
    columns = (
        "run",
        "training",
        "seed",
        "splits",
        "weights (sha256)",
        "evaluated (UTC)",
        "evaluations during training",
    )
    return Table(key="runs", title="Runs of this report", columns=columns, rows=tuple(rows))
