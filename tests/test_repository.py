"""The rules of CONTRIBUTING.md, checked on the source itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

import fx_d2
from fx_d2.config import add_fx_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fx_d2"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted(p for folder in ("tools", "datasets") for p in (ROOT / folder).rglob("*.py"))

# A part imports only from parts to its left; parts between the same bars do not know each other.
DIRECTION = (
    ("structures", "config", "files"),
    ("batch",),
    ("data", "layers", "losses"),
    ("modeling",),
    ("engine",),
    ("evaluation",),
    ("visualization",),
    ("reporting",),
    ("predictor",),
    ("demo",),
)
RANK = {part: rank for rank, parts in enumerate(DIRECTION) for part in parts}
ALLOWED_ACROSS = {("losses", "layers")}
FORBIDDEN = {("modeling", "data")}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    """The path as tests and messages write it."""
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def part_of(path: Path) -> str:
    """The part: "data" for fx_d2/data/catalog.py, "config" for fx_d2/config.py, "" for fx_d2/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of every module (and of every name imported from a package) a file imports, at any depth."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *(node.module.split(".") if node.module else ())))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    """The parts of fx_d2 a file imports, its own left out."""
    names = (module.split(".") for module in imported_modules(path))
    return {n[1] for n in names if n[0] == "fx_d2" and len(n) > 1 and n[1] in RANK} - {part_of(path)}


def public_definitions(path: Path) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Public classes and functions of a file, and public methods of its public classes."""
    for node in tree_of(path).body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def functions(path: Path) -> Iterator[Function]:
    """Every function and method of a file."""
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, Function))


def unannotated(function: Function) -> list[str]:
    """Parameters without annotation (self and cls aside), and "return"."""
    args = function.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    names = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
    return names + ["return"] * (function.returns is None)


def tracked_files() -> list[Path]:
    """Text files git tracks or would track; the tests' own patterns live in this file, which is left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    paths = (ROOT / line for line in listed.stdout.splitlines())
    return [p for p in paths if p.is_file() and p != Path(__file__).resolve() and b"\0" not in p.read_bytes()]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    if not part:
        return
    for other in imported_parts(path):
        assert (part, other) not in FORBIDDEN, f"{name_of(path)} imports fx_d2.{other}, which {part} must not know"
        assert RANK[other] < RANK[part] or (part, other) in ALLOWED_ACROSS, (
            f"{name_of(path)} imports fx_d2.{other}: {part} stands to its left"
        )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_package_knows_no_program(path: Path) -> None:
    outside = {"tools", "datasets", "tests", "projects"}
    assert not outside & {module.split(".")[0] for module in imported_modules(path)}


def test_every_part_has_a_place_in_the_direction() -> None:
    assert {part_of(path) for path in SOURCES} - {""} <= set(RANK)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_print(path: Path) -> None:
    calls = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
    lines = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not lines, f"{name_of(path)}: print in lines {lines}; use logging.getLogger(__name__)"


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS], ids=name_of)
def test_public_names_are_documented_and_annotated(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring"
    for name, node in public_definitions(path):
        assert ast.get_docstring(node), f"{name_of(path)}: {name} has no docstring"
    for function in functions(path):
        missing = unannotated(function)
        assert not missing, f"{name_of(path)}: {function.name} does not annotate {missing}"


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS], ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 350, f"{name_of(path)} has {lines} lines"
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= 60, f"{name_of(path)}: {function.name} has {length} lines"


def test_every_module_has_a_mirrored_test() -> None:
    modules = (path.relative_to(PACKAGE) for path in SOURCES if path.name != "__init__.py")
    wanted = [ROOT / "tests" / module.parent / f"test_{module.name}" for module in modules]
    missing = [name_of(path) for path in wanted if not path.is_file()]
    assert not missing, f"missing test files: {missing}"


def test_no_place_of_one_machine_in_any_file() -> None:
    home = re.compile(r"(?<![\w.~}-])/(?:work|farm|home|Users|scratch|mnt|opt|root|tmp)/\w")
    registry = re.compile(r"files\.pythonhosted|pypi\.org|registry\.npmjs|deb\.debian|download\.pytorch\.org")
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not home.search(line), f"{name_of(path)}:{number} names a path of one machine: {line.strip()}"
            assert not registry.search(line), f"{name_of(path)}:{number} names a package registry: {line.strip()}"


def own_keys() -> set[str]:
    """Dotted names of the keys that add_fx_config adds to Detectron2's."""

    def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
        for key, value in node.items():
            name = f"{prefix}{key}"
            yield from leaves(value, f"{name}.") if isinstance(value, CfgNode) and value else [name]

    stock, ours = get_cfg(), get_cfg()
    add_fx_config(ours)
    return set(leaves(ours)) - set(leaves(stock))


def test_no_config_key_is_dead() -> None:
    """Every key is read somewhere: as an attribute, or as a word where keys are looked up by task or component."""
    readers = [path for path in SOURCES if path != PACKAGE / "config.py"]
    names = {node.attr for path in readers for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    words = {"CLS", "LOC", "SEG", "BACKBONE", "CLS_HEADS", "LOC_ENCODER", "LOC_DECODERS", "SEG_DECODER", "SEG_HEADS"}
    dead = sorted(key for key in own_keys() if key.rpartition(".")[2] not in names | words)
    assert not dead, f"keys of fx_d2/config.py that nothing reads: {dead}"


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-1] == "make test"
    assert "\nmake test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == fx_d2.__version__
    assert f"\n## {fx_d2.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def declared_packages() -> set[str]:
    """Distributions that setup.py names, in lower case."""
    strings = (n.value for n in ast.walk(tree_of(ROOT / "setup.py")) if isinstance(n, ast.Constant))
    found = (re.match(r"[A-Za-z][\w.-]*", s) for s in strings if isinstance(s, str) and s.count("\n") == 0)
    return {match.group().lower() for match in found if match}


def test_every_import_is_declared() -> None:
    distribution = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    distribution |= {"kornia_rs": "kornia-rs"}
    known = set(sys.stdlib_module_names) | {"fx_d2", "detectron2", "synthetic", "datasets", "benchmarks", "__future__"}
    declared = declared_packages()
    for path in [*SOURCES, *PROGRAMS]:
        local = {p.stem for p in path.parent.iterdir()}
        roots = {module.split(".")[0] for module in imported_modules(path)} - known - local
        strange = sorted(root for root in roots if distribution.get(root, root).lower() not in declared)
        assert not strange, f"{name_of(path)} imports {strange}, which setup.py does not declare"
