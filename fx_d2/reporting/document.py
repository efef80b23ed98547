"""A report as data (sections with tables, plots and images), and the files written from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fx_d2.files import write_atomic
from fx_d2.reporting.tables import Table

FORMAT = "fx_d2_report"
"""Value of "format" in report.json."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An embedded plot or image.

    Attributes:
        key: unique in a report; letters, digits, "-" and "_".
        uri: "data:image/...;base64,...".
        alt: alternative text.
        caption: lines of the caption.
        width, height: in CSS pixels for plots, in image pixels for images.
    """

    key: str
    uri: str
    alt: str
    caption: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report.

    Attributes:
        key: unique in a report, same characters as in `Figure`.
        title: its heading.
        text: paragraphs.
        tables: shown first.
        plots: shown in a grid.
        pictures: images shown in a grid; a click enlarges one.
        code: preformatted text, such as a config.
        parts: subsections.
        folded: whether the section is collapsed when the page opens.
    """

    key: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Figure, ...] = ()
    pictures: tuple[Figure, ...] = ()
    code: str = ""
    parts: tuple[Section, ...] = ()
    folded: bool = False

    @property
    def empty(self) -> bool:
        """Whether the section has no content."""
        own = (self.text, self.tables, self.plots, self.pictures, self.code)
        return not any(own) and all(part.empty for part in self.parts)

    def walk(self) -> Iterator[Section]:
        """The section and all of its subsections."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report.

    Attributes:
        title: its heading.
        notice: sentence shown at the top and bottom of the page.
        sections: top-level sections.
        facts: further plain data for report.json.
    """

    title: str
    notice: str
    sections: tuple[Section, ...]
    facts: dict[str, Any]

    def tables(self) -> list[Table]:
        """All tables in order."""
        return [table for section in self.sections for part in section.walk() for table in part.tables]


def slug(text: str) -> str:
    """Turn text into a key of letters, digits, "-" and "_"."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "x"


def write_document(folder: str | Path, document: Document) -> list[Path]:
    """Write report.html (everything), report.md and report.json (no figures), and tables/<key>.csv.

    An earlier report in the folder is replaced: the tables listed in its report.json are removed. Other files stay.

    Returns:
        The files, report.html first.
    """
    folder = Path(folder)
    environment = Environment(
        loader=PackageLoader("fx_d2.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(document=document)
    tables = {table.key: table.data() for table in document.tables()}
    facts = {"format": FORMAT, "notice": document.notice, **document.facts, "tables": tables}
    files = {
        "report.html": page,
        "report.md": _markdown(document),
        "report.json": json.dumps(facts, indent=1, allow_nan=False, default=str) + "\n",
        **{_csv_name(table.key): table.csv() for table in document.tables()},
    }
    for name in _written_before(folder) - set(files):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]


def _csv_name(key: str) -> str:
    return f"tables/{slug(key)}.csv"


def _written_before(folder: Path) -> set[str]:
    """Table files of an earlier report in the folder; empty if report.json is missing or has another format."""
    try:
        facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return set(map(_csv_name, facts["tables"])) if isinstance(facts, dict) and facts.get("format") == FORMAT else set()


def _markdown(document: Document) -> str:
    parts = [f"# {document.title}", document.notice]
    for section in document.sections:
        parts += _section(section, 2)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, level: int) -> list[str]:
    parts = [f"{'#' * min(level, 6)} {section.title}", *section.text]
    for table in section.tables:
        parts += [f"**{table.title}**", table.markdown()]
    if section.plots or section.pictures:
        parts.append(f"Figures in report.html: {len(section.plots) + len(section.pictures)}.")
    if section.code:
        parts.append("\n".join(f"    {line}" for line in section.code.splitlines()))
    for part in section.parts:
        if not part.empty:
            parts += _section(part, level + 1)
    return parts
