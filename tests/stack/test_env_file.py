"""The text rules of an ``.env`` file, and what happens to the file itself."""

import stat
from pathlib import Path

from propeller.stack.env_file import EnvFile


def test_a_file_is_made_changed_and_backed_up(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    file = EnvFile.read(path)
    assert file.text is None
    assert file.write(file.updated({"A": "1"}))
    assert path.read_text() == "A=1\n"
    assert not file.backup.exists()
    again = EnvFile.read(path)
    assert again.values == {"A": "1"}
    assert again.write(again.updated({"A": "2", "B": "3"}))
    assert path.read_text() == "A=2\n\nB=3\n"
    assert (tmp_path / ".env.bak").read_text() == "A=1\n"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, file.backup)] == [0o600, 0o600]
