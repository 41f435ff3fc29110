"""``propeller new`` and ``propeller build``: a folder with a program, and a Python script that becomes a Wasm program."""

import re
import shlex
import time
from pathlib import Path

from propeller.cli.template_data import TEMPLATES
from propeller.cli.terminal import FIRST_BUILD, Terminal
from propeller.errors import StartError
from propeller.native.build import build_program, ending_for

_TEMPLATE = Path(__file__).parent / "template"
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


def run_new(folder: Path, template: str = "linear") -> None:
    """Make a project; its name is the folder's, and becomes the image's.

    Args:
        folder: the folder to make.
        template: a name of ``TEMPLATES``.

    Raises:
        StartError: the name is no image name, the folder is there and not empty, or there is no such template.
    """
    name, kind = folder.name, TEMPLATES.get(template)
    if kind is None:
        raise StartError(f"--template: there is no {template!r}; there are {', '.join(TEMPLATES)}")
    if _NAME.fullmatch(name) is None:
        raise StartError(
            f"{name!r} cannot name an image: use lower-case letters and digits, with single . _ or - between them"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StartError(f"{folder} already exists; choose another name, or remove it first")
    (folder / "data").mkdir(parents=True)
    for file in sorted([*_TEMPLATE.iterdir(), *(_TEMPLATE / template).iterdir()]):
        if file.suffix in {".py", ".toml", ".md"}:
            text = file.read_text().replace("NAME", name).replace("TITLE", kind.title)
            (folder / file.name).write_text(text)
    for number in (1, 2, 3):
        (folder / "data" / f"{number}.{kind.suffix}").write_text(kind.data(number))
    print(f"Created {folder}. Next:\n  cd {shlex.quote(str(folder))}\n  propeller try train.py")


def run_build(script: Path, output: Path | None, *, standalone: bool, host_tensors: bool) -> None:
    """Build ``script``; print the file, its digest and size.

    Raises:
        BuildError: with the Python error and its line.
        StartError: a file cannot be read or written.
    """
    target = output or script.with_suffix(ending_for(script))
    started_at = time.monotonic()
    console = Terminal(stderr=True)
    try:
        with console.status(f"Building {target} ({FIRST_BUILD}) …"):
            built = build_program(script, target, standalone=standalone, host_tensors=host_tensors)
    except OSError as error:
        raise StartError(f"{error.filename or target}: {error.strerror}") from None
    took = "from the cache" if built.cached else f"{time.monotonic() - started_at:.1f} s"
    size = f"{built.size / 1e6:.1f} MB" if built.size >= 1e6 else f"{built.size / 1e3:.1f} kB"
    print(f"Built {built.path} ({size}, {took})\nDigest: {built.digest}")
