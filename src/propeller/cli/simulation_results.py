"""The folder of ``propeller simulate --out``: checked and locked before the simulation, written after it."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from propeller.errors import InvalidError, StartError
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.files import write_durably
from propeller.sdk.values import encode_model
from propeller.simulation import Simulation

_OPTIONAL = ("best.safetensors", "metrics.svg", "labels.svg")
"""Files that not every simulation has: those of an earlier one in the same folder must not stay."""


@contextlib.contextmanager
def results_folder(folder: Path) -> Iterator[Path]:
    """Make the folder, for one simulation at a time: nothing is computed for a folder that cannot be written to.

    Raises:
        StartError: it cannot be made or written to, or another simulation has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StartError(f"--out {folder}: there is a file of this name; name a folder") from None
    except OSError as error:
        raise StartError(f"--out {folder}: {error.strerror}; name another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartError(f"--out {folder}: is not writable; name another folder")
    lock = FileLock(folder)
    try:
        lock.acquire(wait_s=0)
    except LockedError:
        raise StartError(
            f"--out {folder}: another simulation writes to it; name another folder, or wait until it ends"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield folder
    finally:
        lock.release()


def write_results(folder: Path, ended: Simulation) -> None:
    """Write ``history.json``, ``history.csv``, ``latest.safetensors`` and, if there is one, ``best.safetensors``; ``metrics.svg`` and, of a data set
    that was divided, ``labels.svg`` where matplotlib is installed. Those of an earlier simulation are replaced.

    Raises:
        StartError: the folder cannot be written to.
    """
    files = dict(_files(ended))
    try:
        for name in _OPTIONAL:
            if name not in files:
                (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_durably(folder / name, content)
    except OSError as error:
        raise StartError(
            f"--out {folder}: {error.strerror}: not all results are written; make room, and simulate again: the result is the same"
        ) from None


def _files(ended: Simulation) -> Iterator[tuple[str, bytes]]:
    history = ended.history()
    yield "history.json", json.dumps({**ended.status(), "rounds": history}, indent=1).encode()
    rows = history.rows()
    text = io.StringIO(newline="")
    lines = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    lines.writeheader()
    lines.writerows(rows)
    yield "history.csv", text.getvalue().encode()
    yield "latest.safetensors", encode_model(ended.model())
    if ended.status()["best"] is not None:
        yield "best.safetensors", encode_model(ended.model("best"))
    # Here, as matplotlib is slow to import.
    from propeller.simulation.pictures import svg_of

    with contextlib.suppress(InvalidError):  # nothing was measured, or there is no matplotlib
        yield "metrics.svg", svg_of(ended.figure()).encode()
    with contextlib.suppress(InvalidError):  # documents have no labels
        yield "labels.svg", ended.fleet.label_counts().svg().encode()
