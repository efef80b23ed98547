from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from fx_d2.reporting.document import Document, Figure, Section, slug, write_document
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
    assert NOTICE in text and "## Tables" in text and "### Curves" in text and "1 figures: in report.html." in text
    assert "Nothing" not in text and "    KEY: <1>" in text
    facts = json.loads(files[2].read_text(encoding="utf-8"))
    assert facts["notice"] == NOTICE and facts["tables"]["t"]["rows"] == [
        ["<b>", {"value": 1.5, "low": 1.0, "high": 2.0}]
    ]
    assert list(csv.reader(files[3].read_text().splitlines()))[1] == ["<b>", "1.5", "1.0", "2.0"]


def test_empty_sections_and_keys() -> None:
    assert Section(key="x", title="x", parts=(Section(key="y", title="y"),)).empty
    assert not DOCUMENT.sections[1].empty and [part.key for part in DOCUMENT.sections[1].walk()][:2] == ["r", "c"]
    assert slug("a/b c.d") == "a-b-c-d" and slug("/") == "x"
