"""A short soak of the kinds of faults that need more than a process and a link; in a file of its own, so that it runs beside the other."""

import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 12
SEED = 1

# Each once, as far as it can be had here: the table says why one is not.
KINDS = ("poisonous participant", "full disk", "damaged model version", "damaged update")


@pytest.mark.timeout(180)
def test_each_of_these_faults_is_named_and_harms_nothing_else() -> None:
    command = [
        sys.executable,
        "-m",
        "faults.soak",
        "--minutes",
        "0",
        "--rounds",
        str(ROUNDS),
        "--seed",
        str(SEED),
    ]
    done = subprocess.run(
        [*command, "--kinds", ",".join(KINDS)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1  damaged model version" in done.stdout, done.stdout
