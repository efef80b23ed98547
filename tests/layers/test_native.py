"""Libraries that are compiled on first use."""

import ctypes
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fx_d2.layers import native
from fx_d2.layers.native import load_library
from fx_d2.structures import FXError

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ file; libraries go to a folder that does not exist yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def compiler(source: Path) -> None:
    """Skip where there is none."""
    try:
        load_library(source)
    except FXError as error:
        pytest.skip(f"no usable compiler here: {error}")


@pytest.mark.usefixtures("compiler")
def test_a_library_is_compiled_once(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        library, path = load_library(source)
        assert library.answer() == 42 and not caplog.messages
        source.write_text(SOURCE.replace("42", "43"))
        changed, other = load_library(source)
    assert changed.answer() == 43 and other != path and other.parent == path.parent
    assert [message.split()[0] for message in caplog.messages] == ["compiling", "compiled"]
    assert sorted(path.parent.iterdir()) == sorted([path, other]), "scratch files stayed"


@pytest.mark.usefixtures("compiler")
def test_the_compiler_repeats_itself(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes in another folder: the digest that a run records tells of the arithmetic, not of the build."""
    real, built = Path(native.__file__).with_name("deformable_cpu.cpp"), []
    for name in ("one", "another"):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / name))
        copy = tmp_path / name / real.name
        copy.parent.mkdir()
        copy.write_bytes(real.read_bytes())
        built.append(load_library(copy)[1].read_bytes())
    assert built[0] == built[1]


@pytest.mark.usefixtures("compiler")
def test_another_cpu_gets_its_own_library(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = load_library(source)
    monkeypatch.setattr(native, "_cpu_features", lambda: "another")
    assert load_library(source)[1] != path


@pytest.mark.usefixtures("compiler")
def test_several_may_build_at_once(source: Path) -> None:
    """What they share is the folder, as processes do."""
    source.write_text(SOURCE.replace("42", "44"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load_library, [source] * 4))
    assert [library.answer() for library, _ in found] == [44] * 4
    assert len({path for _, path in found}) == 1 and not any(p.is_dir() for p in found[0][1].parent.iterdir())


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    with pytest.raises(FXError, match=r"answer\.cpp needs a C\+\+ compiler: install g\+\+ or set CXX"):
        load_library(source)


@pytest.mark.usefixtures("compiler")
def test_a_compiler_s_reason_is_told(source: Path) -> None:
    source.write_text("int broken( {\n")
    with pytest.raises(FXError, match=r"cannot compile answer\.cpp: .*error.*") as caught:
        load_library(source)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("compiler")
def test_a_damaged_library_and_a_folder_that_cannot_be(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = load_library(source)[1].with_name("damaged.so")
    path.write_bytes(b"no library")
    with pytest.raises(OSError):
        ctypes.CDLL(str(path))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: ctypes.cdll.LoadLibrary(str(path)))
    with pytest.raises(FXError, match=r"answer\.cpp has no usable library in .*delete the library if it is damaged"):
        load_library(source)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(source))
    with pytest.raises(FXError, match="set TORCH_EXTENSIONS_DIR"):
        load_library(source)
