"""What the Markdown files point to is there: links, headings, files, config keys, and the options of commands."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2.config import add_fx_config

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "datasets", "projects", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

# Options of Detectron2's parser, of torchrun and of Slurm, which no file here spells out.
FOREIGN = {"--config-file", "--resume", "--eval-only", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    """The commands of the page's shell blocks, each on one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()


def anchors(page: Path) -> set[str]:
    """Fragments of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def has_key(cfg: CfgNode, name: str) -> bool:
    """Whether a dotted name is a key of the config, or of a table that users extend."""
    node = cfg
    for part in name.split("."):
        if not isinstance(node, CfgNode):
            return False
        if part not in node:
            return node.is_new_allowed()
        node = node[part]
    return True


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for link in links:
        path, _, fragment = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        if fragment:
            assert fragment in anchors(target), f"{link}: no such heading; there are {sorted(anchors(target))}"


@every_page
def test_files_in_backticks_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:fx_d2|tools|tests|projects|docs|datasets/synthetic)/[\w./-]+\.\w+)(?:::\w+)?`", prose(page)
    )
    patterns = {"fx_d2/part/name.py", "tests/part/test_name.py"}
    missing = [name for name in named if name not in patterns and not (ROOT / name).exists()]
    assert not missing


@every_page
def test_config_keys_exist(page: Path) -> None:
    cfg = get_cfg()
    add_fx_config(cfg)
    sections = "|".join(key for key, value in cfg.items() if isinstance(value, CfgNode))
    part = r"\.[A-Z][A-Z0-9_]*[A-Z0-9]"  # `MODEL.LOC.DN_*` names several keys
    named = re.findall(rf"(?<![\w.<])((?:{sections})(?:{part})+)\b", page.read_text(encoding="utf-8"))
    unknown = sorted({name for name in named if not has_key(cfg, name)})
    assert not unknown


@every_page
def test_commands_have_their_files_and_options(page: Path) -> None:
    for command in commands(page):
        for name in re.findall(r"\bprojects/[\w/.-]+\.yaml\b", command):
            assert (ROOT / name).is_file(), f"{command.strip()}: there is no {name}"
        script = re.search(r"\b(?:tools|datasets)/[\w/]+\.py\b", command)
        if script is None:
            continue
        assert (ROOT / script.group()).is_file(), f"{command.strip()}: there is no {script.group()}"
        options = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", command[script.end() :].partition("#")[0])) - FOREIGN
        where = (ROOT / script.group()).parent
        sources = (*where.rglob("*.py"), *ROOT.glob("fx_d2/**/*.py"))
        programs = "".join(path.read_text(encoding="utf-8") for path in sources)
        unknown = sorted(option for option in options if f'"{option}"' not in programs)
        assert not unknown, f"{command.strip()}: unknown {unknown}"
