"""What a process that ran foreign code leaves or says, read without trust in it; and folders of sandboxes that begin at once."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from propeller.wasm import folder
from propeller.wasm.places import Places
from propeller.wasm.report import figure, read_report


def test_files_are_collected_with_their_paths(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "a" / "b" / "two").write_bytes(b"2")
    assert folder.collect(tmp_path) == {"one": b"1", "a/b/two": b"2"}


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
    with pytest.raises(folder.OutError, match=r"^/out/sub/x: not a regular file"):
        folder.collect(out)


@pytest.mark.parametrize("text", ["", "[" * 60_000, "[1]", "{", "null", "\xff"])
def test_a_broken_report_is_none(text: str) -> None:
    assert read_report(text.encode("latin-1")) == {}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "1e999", "9" * 400, "true", '"5"', "null", "[]"])
def test_figures_are_finite_numbers(value: str) -> None:
    assert figure(read_report(f'{{"cpu_s": {value}}}'.encode()), "cpu_s") is None
    assert figure(json.loads('{"cpu_s": 2}'), "cpu_s") == 2.0


def test_sandboxes_that_begin_at_once_keep_their_folders(tmp_path: Path) -> None:
    """None takes another's folder for abandoned; what really is abandoned goes, and what is no folder stays."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "note.txt").touch()
    faults: list[object] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(60):
            places = Places(tmp_path)
            try:
                places.open()
                if not places.own.is_dir():
                    faults.append(f"{places.own} is gone")
            except OSError as error:
                faults.append(error)
            places.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]
