import errno
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fx_d2.engine import folder_lock
from fx_d2.engine.folder_lock import LOCK, hold_folder
from fx_d2.structures import FXError

HOLD = """
import sys, time
from pathlib import Path
from fx_d2.engine.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_training_a_folder_until_its_process_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(FXError, match=f"OUTPUT_DIR {tmp_path}: another training"), hold_folder(tmp_path):
                pass
        finally:
            other.kill()
    for _ in range(2):
        with hold_folder(tmp_path):
            pass


def test_a_lock_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(FXError, match=rf"OUTPUT_DIR {tmp_path}: \.lock in it cannot be opened"), hold_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", unsupported)
    with caplog.at_level(logging.DEBUG), hold_folder(tmp_path):
        assert "training without a lock" in caplog.text
