"""What a process that ran foreign code leaves on disk, read without trust in it."""

import os
import socket
from pathlib import Path

import pytest

from propeller.wasm import confinement, folder_contents


def test_files_are_collected_with_their_paths(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "a" / "b" / "two").write_bytes(b"2")
    assert folder_contents.take_files(tmp_path)[0] == {"one": b"1", "a/b/two": b"2"}


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "socket"])
def test_nothing_but_files_and_folders_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out, secret = tmp_path / "out", tmp_path / "secrets"
    (out / "sub").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").write_text("hidden")
    place = out / "sub" / "x"
    if kind == "link":
        place.symlink_to(secret / "key")
    elif kind == "link to a folder":
        place.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        monkeypatch.chdir(place.parent)  # a socket's path has a limit
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("x")
    with pytest.raises(folder_contents.OutputError, match=r"^/out/sub/x: not a regular file"):
        folder_contents.take_files(out)


def test_files_given_by_path_are_linked_and_go_alone(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"3" * 10)
    folder_contents.create(tmp_path / "task", {"a": b"1", "b": large})
    assert (tmp_path / "task" / "in" / "b").read_bytes() == b"3" * 10
    assert (tmp_path / "task" / "in" / "b").samefile(large)
    folder_contents.remove(tmp_path / "task")
    assert large.read_bytes() == b"3" * 10


def test_folders_that_their_owner_may_not_enter_are_removed(tmp_path: Path) -> None:
    """A native program makes folders of any mode; left there, they would keep the next proplet from starting."""
    folder = tmp_path / "task"
    for place in (folder, folder / "out", folder / "out" / "inner", folder / "out" / "inner" / "more"):
        place.mkdir()
    (folder / "out" / "inner" / "file").write_text("x")
    for place, mode in (
        (folder / "out" / "inner" / "more", 0),
        (folder / "out" / "inner", 0o500),
        (folder / "out", 0),
    ):
        place.chmod(mode)
    with confinement.without_capabilities():  # as a proplet that is not root
        folder_contents.remove(folder)
    assert not folder.exists()
