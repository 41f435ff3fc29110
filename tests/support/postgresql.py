"""A PostgreSQL server for tests, where its programs are installed; reached over a socket in a folder of its own."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 60.0


def find_programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps it out of the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        folders.insert(0, Path(found).parent)
    needed = ("initdb", "postgres", "pg_isready", "createdb")
    return next((folder for folder in folders if all((folder / name).exists() for name in needed)), None)


@contextmanager
def open_postgresql(programs: Path) -> Iterator[str]:
    """Run a server; gives the folder of its socket."""
    user = _unprivileged()
    # Not pytest's folder, which that user may not enter; the path of a socket must be short, too.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if user is not None:
            os.chown(folder, user, -1)
        data, log = folder / "data", folder / "log"
        initialise: list[str | Path] = [programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-N"]
        subprocess.run(
            [*initialise, "-E", "UTF8", "--locale=C"], user=user, check=True, capture_output=True, cwd=folder
        )
        options = ["--listen_addresses=", "--fsync=off", f"--unix_socket_directories={folder}"]
        with log.open("wb") as output:
            server: list[str | Path] = [programs / "postgres", "-D", data, *options]
            process = subprocess.Popen(server, user=user, stdout=output, stderr=output, cwd=folder)
        try:
            _wait(programs, folder, process, log)
            yield str(folder)
        finally:
            process.send_signal(signal.SIGINT)  # ends it without waiting for its clients
            process.wait(START_S)
    finally:
        shutil.rmtree(folder)


def create_database(programs: Path, host: str, name: str) -> str:
    """An empty database; gives its URL."""
    subprocess.run([programs / "createdb", "-h", host, "-U", "tests", name], check=True, capture_output=True)
    return f"postgresql://tests@/{name}?host={host}"


def _unprivileged() -> int | None:
    """Who runs the server: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_uid
    except KeyError:
        return pwd.getpwnam("nobody").pw_uid


def _wait(programs: Path, host: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while subprocess.run([programs / "pg_isready", "-q", "-h", host], check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
        time.sleep(0.05)
