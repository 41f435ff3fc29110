"""``propeller new``: a folder with a program, an experiment and a little data, ready to run."""

import json
import random
import re
import shlex
from pathlib import Path

from propeller.process.run import StartError

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
        raise StartError(f"{folder} is there already; choose another name, or remove it first")
    (folder / "data").mkdir(parents=True)
    for file in sorted(_TEMPLATE.iterdir()):
        if file.suffix in {".py", ".toml", ".md"}:
            (folder / file.name).write_text(file.read_text().replace("NAME", name))
    for number in (1, 2, 3):
        (folder / "data" / f"{number}.json").write_text(_samples(number))
    print(f"Made {folder}. Next:\n  cd {shlex.quote(str(folder))}\n  propeller try train.py")


def _samples(seed: int) -> str:
    """A noisy feature, and a small one that tells more; each device sees more of one label than of the other."""
    source = random.Random(seed)  # noqa: S311 - an example's data
    lines = []
    for _ in range(_SAMPLES):
        label = int(source.random() < seed / 4)
        sign = 1 if label else -1
        x = [round(source.gauss(sign, 4), 3), round(source.gauss(-sign / 2, 0.3), 3)]
        lines.append(json.dumps({"x": x, "y": label}))
    return '{"data": [\n  ' + ",\n  ".join(lines) + "\n]}\n"
