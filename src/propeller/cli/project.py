"""``propeller new`` and ``propeller build``: a folder with a program, and a Python script that becomes a Wasm program."""

import json
import random
import re
import shlex
import time
from pathlib import Path

from propeller.cli.terminal import Terminal
from propeller.errors import StartError
from propeller.wasm.build import build

_TEMPLATE = Path(__file__).parent / "template"
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_SAMPLES = 64


def run_new(folder: Path) -> None:
    """Make a project; its name is the folder's, and becomes the image's.

    Raises:
        StartError: the name is no image name, or the folder is there and not empty.
    """
    name = folder.name
    if _NAME.fullmatch(name) is None:
        raise StartError(
            f"{name!r} cannot name an image: use lower-case letters and digits, with single . _ or - between them"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StartError(f"{folder} already exists; choose another name, or remove it first")
    (folder / "data").mkdir(parents=True)
    for file in sorted(_TEMPLATE.iterdir()):
        if file.suffix in {".py", ".toml", ".md"}:
            (folder / file.name).write_text(file.read_text().replace("NAME", name))
    for number in (1, 2, 3):
        (folder / "data" / f"{number}.json").write_text(_samples(number))
    print(f"Created {folder}. Next:\n  cd {shlex.quote(str(folder))}\n  propeller try train.py")


def _samples(seed: int) -> str:
    """A noisy feature, and a small one that tells more; each device sees more of one label than of the other.

    Both are of a size at which gradient descent with the project's ``lr`` converges for a squared error, too: the programs that
    the documentation shows are put into a project like this one.
    """
    source = random.Random(seed)  # noqa: S311 - an example's data
    lines = []
    for _ in range(_SAMPLES):
        label = int(source.random() < seed / 4)
        sign = 1 if label else -1
        x = [round(source.gauss(sign / 4, 1), 3), round(source.gauss(-sign / 2, 0.3), 3)]
        lines.append(json.dumps({"x": x, "y": label}))
    return '{"data": [\n  ' + ",\n  ".join(lines) + "\n]}\n"


def run_build(script: Path, output: Path | None, *, standalone: bool, host_tensors: bool) -> None:
    """Build ``script``; print the file, its digest and size.

    Raises:
        BuildError: with the Python error and its line.
        StartError: a file cannot be read or written.
    """
    target = output or script.with_suffix(".wasm")
    started_at = time.monotonic()
    console = Terminal(stderr=True)
    try:
        with console.status(
            f"Building {target} (the first one makes the Python runtime: 20 s, or minutes on a slow machine) …"
        ):
            built = build(script, target, standalone=standalone, host_tensors=host_tensors)
    except OSError as error:
        raise StartError(f"{error.filename or target}: {error.strerror}") from None
    took = "from the cache" if built.cached else f"{time.monotonic() - started_at:.1f} s"
    size = f"{built.size / 1e6:.1f} MB" if built.size >= 1e6 else f"{built.size / 1e3:.1f} kB"
    print(f"Built {built.path} ({size}, {took})\nDigest: {built.digest}")
