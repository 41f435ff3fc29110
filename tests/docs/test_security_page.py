"""What docs/security.md says is shown by tests and benchmarks that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_shows_a_promise_is_there() -> None:
    page = (ROOT / "docs/security.md").read_text()
    shown = set(re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", page))
    assert len(shown) > 50
    assert [name for name in sorted(shown) if not (ROOT / name).exists()] == []


def test_every_attack_and_promise_has_something_that_shows_it() -> None:
    page = (ROOT / "docs/security.md").read_text()
    for title in ("Promises and their tests", "Attacks, before and now"):
        _head, _, table = page.partition(f"## {title}\n")[2].partition("|---")
        rows = [line for line in table.partition("\n\n")[0].splitlines()[1:] if line.startswith("|")]
        assert len(rows) > 15
        assert [row for row in rows if "`tests/" not in row and "`benchmarks/" not in row] == []
