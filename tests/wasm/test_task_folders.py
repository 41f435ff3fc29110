"""Folders of sandboxes that begin at once."""

import threading
from pathlib import Path

import pytest

from propeller.wasm.task_folders import TaskFolders, memory_folder


def test_sandboxes_that_begin_at_once_keep_their_folders(tmp_path: Path) -> None:
    """None takes another's folder for abandoned; what really is abandoned goes, and what is no folder stays."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "note.txt").touch()
    faults: list[object] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(60):
            folders = TaskFolders(tmp_path)
            try:
                folders.open()
                if not folders.own.is_dir():
                    faults.append(f"{folders.own} is gone")
            except OSError as error:
                faults.append(error)
            folders.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]


def test_a_link_is_not_taken_for_an_abandoned_folder(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "tasks" / "link").symlink_to(tmp_path / "elsewhere")
    folders = TaskFolders(tmp_path / "tasks")
    folders.open()
    folders.close()
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_a_folder_in_memory_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propeller.wasm.task_folders._MEMORY", tmp_path)
    assert memory_folder() is None  # the disk
    monkeypatch.setattr(Path, "is_mount", lambda _self: True)
    folder = memory_folder()
    assert folder is not None
    assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert memory_folder() == folder
    folder.chmod(0o755)  # whoever made it, others see into it
    assert memory_folder() is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert memory_folder() is None
