from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fx_d2.reporting.document import FORMAT, Document, Figure, Section, slug, write_document
from fx_d2.reporting.tables import Number, Table

VOID = {"meta", "img", "br", "hr", "link", "input"}
NOTICE = "Research use only."


class Checker(HTMLParser):
    """Notes unbalanced tags, references and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.alts: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        known = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [known["id"] or ""] if "id" in known else []
        self.alts += [known.get("alt") or ""] if tag == "img" else []

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def check(page: str) -> Checker:
    """The page is well-formed and needs nothing outside itself."""
    checker = Checker()
    checker.feed(page)
    assert not checker.wrong and not checker.open
    assert all(link.startswith(("#", "data:image/")) for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert len(set(checker.ids)) == len(checker.ids) and all(checker.alts)
    assert not checker.tags & {"script", "link", "iframe"} and not re.search(r"url\(|@import", page)
    return checker


TABLE = Table(key="t", title="T <&>", columns=("x", "y"), rows=(("<b>", Number(value=1.5, interval=(1.0, 2.0))),))
PLOT = Figure(key="f", uri="data:image/png;base64,AA==", alt='a "plot"', caption=("c<",), width=3, height=4)
PICTURE = Figure(key="p", uri="data:image/webp;base64,AA==", alt="x-ray", caption=("one", "two"), width=3, height=4)
DOCUMENT = Document(
    title="A <report>",
    notice=NOTICE,
    sections=(
        Section(key="s", title="Tables", text=("a & b",), tables=(TABLE,)),
        Section(
            key="r",
            title="Run",
            parts=(
                Section(key="c", title="Curves", plots=(PLOT,), folded=True),
                Section(key="g", title="Pictures", pictures=(PICTURE,)),
                Section(key="y", title="Config", code="KEY: <1>\nB: 2", folded=True),
                Section(key="e", title="Nothing"),
            ),
        ),
    ),
    facts={"runs": {"a": 1}},
)


def test_the_page_is_whole_well_formed_and_escaped(tmp_path: Path) -> None:
    files = write_document(tmp_path, DOCUMENT)
    page = files[0].read_text(encoding="utf-8")
    checker = check(page)
    assert page.count(NOTICE) == 2 and checker.tags >= {"main", "nav", "caption", "th", "details", "figcaption", "pre"}
    assert "A &lt;report&gt;" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert "1.50 <small>[1.0, 2.0]</small>" in page and "KEY: &lt;1&gt;\nB: 2" in page


def test_the_other_files(tmp_path: Path) -> None:
    files = write_document(tmp_path, DOCUMENT)
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "report.html",
        "report.md",
        "report.json",
        "tables/t.csv",
    ]
    text = files[1].read_text(encoding="utf-8")
    assert NOTICE in text and "## Tables" in text and "### Curves" in text and "Figures in report.html: 1." in text
    assert "Nothing" not in text and "    KEY: <1>" in text
    facts = json.loads(files[2].read_text(encoding="utf-8"))
    assert facts["notice"] == NOTICE and facts["tables"]["t"]["rows"] == [
        ["<b>", {"value": 1.5, "low": 1.0, "high": 2.0}]
    ]
    assert list(csv.reader(files[3].read_text().splitlines()))[1] == ["<b>", "1.5", "1.0", "2.0"]


def test_a_report_written_again_has_its_own_tables_only(tmp_path: Path) -> None:
    """What the earlier report wrote goes, what somebody else put there stays."""
    old = replace(DOCUMENT, sections=(Section(key="s", title="Old", tables=(TABLE, replace(TABLE, key="old"))),))
    write_document(tmp_path, old)
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    (tmp_path / "old.csv").write_text("mine")
    files = write_document(tmp_path, DOCUMENT)
    there = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {*files, tmp_path / "tables" / "mine.csv", tmp_path / "old.csv"}


@pytest.mark.parametrize("content", ["[1]", "no json", '{"tables": {"mine": 1}}', '{"format": "other", "tables": 3}'])
def test_a_report_of_somebody_else_names_nothing_to_remove(tmp_path: Path, content: str) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    (tmp_path / "report.json").write_text(content)
    write_document(tmp_path, DOCUMENT)
    assert (tmp_path / "tables" / "mine.csv").read_text() == "mine"


def test_names_in_a_report_lead_nowhere_else(tmp_path: Path) -> None:
    """A report.json that was tampered with removes nothing beside its tables."""
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "out" / "report.json").write_text(json.dumps({"format": FORMAT, "tables": {"../../mine": {}}}))
    write_document(tmp_path / "out", DOCUMENT)
    assert (tmp_path / "mine.csv").is_file()


def test_empty_sections_and_keys() -> None:
    assert Section(key="x", title="x", parts=(Section(key="y", title="y"),)).empty
    assert not DOCUMENT.sections[1].empty and [part.key for part in DOCUMENT.sections[1].walk()][:2] == ["r", "c"]
    assert slug("a/b c.d") == "a-b-c-d" and slug("/") == "x"
