"""The text rules of an ``.env`` file, and what happens to the file itself."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import StartError
from propeller.stack.env_file import (
    GUIDE_VARIABLES,
    EnvFile,
    client_variables,
    default_env_file,
    env_values,
    id_variable,
)

NAMES = ("MANAGER_CLIENT_ID", "PROPLET_CLIENT_ID", "PROPLET_2_CLIENT_KEY")

values = st.dictionaries(st.sampled_from(NAMES), st.from_regex(r"[A-Za-z0-9._-]{0,40}", fullmatch=True))
space = st.sampled_from(["", " ", "  ", "\t"])
old = st.sampled_from(["", "old", '"old value"', "'old'", "old # a comment", "# a comment", '""'])
ours = st.builds(
    "{}{}{}{}={}{}".format, space, st.sampled_from(["", "#", "# "]), st.sampled_from(NAMES), space, space, old
)
other = st.sampled_from(
    [
        "", "  ", "# a comment", "#", "A=1", "export B=2", "MANAGER_CLIENT_ID_2=x", "OTHER_MANAGER_CLIENT_ID=y",
        "# see MANAGER_CLIENT_ID", "C='a # b'", 'D="x\\"y"', "E=${A}", "F = spaced  ", "name=MANAGER_CLIENT_ID=z", "G",
        "H=a\x0bb", "I=\u2028", "é=è",
    ]
)  # fmt: skip


def text_of(lines: list[str], end: str, last: str) -> str:
    return end.join(lines) + (last if lines else "")


texts = st.sampled_from(["\n", "\r\n"]).flatmap(
    lambda end: st.builds(
        text_of, st.lists(ours | other, max_size=12), st.just(end), st.sampled_from(["", end, end * 2])
    )
)


def mentions(line: str) -> bool:
    return line.lstrip(" \t").removeprefix("#").lstrip(" \t").partition("=")[0].rstrip(" \t") in NAMES


@given(texts, values)
def test_what_is_set_is_read_and_the_rest_is_as_it_was(text: str, new: dict[str, str]) -> None:
    before = EnvFile(Path("x"), text)
    after = EnvFile(Path("x"), before.updated(new))
    assert after.values == {**before.values, **new}


@given(texts, values)
def test_setting_it_again_changes_nothing(text: str, new: dict[str, str]) -> None:
    once = EnvFile(Path("x"), text).updated(new)
    assert EnvFile(Path("x"), once).updated(new) == once


@given(texts, values)
def test_only_lines_of_what_is_set_change(text: str, new: dict[str, str]) -> None:
    before, after = text.split("\n"), EnvFile(Path("x"), text).updated(new).split("\n")
    for old_line, new_line in zip(before[:-1], after, strict=False):
        name = old_line.lstrip(" \t#").partition("=")[0].rstrip(" \t")
        if not mentions(old_line) or name not in new:
            assert new_line == old_line
        else:
            assert new_line.endswith("\r") == old_line.endswith("\r")
            assert new_line.rstrip("\r").endswith(new[name])
            assert "#" not in new_line


@given(texts, values)
def test_added_lines_come_after_an_empty_one_in_the_files_line_ends(text: str, new: dict[str, str]) -> None:
    absent = [name for name in new if not any(mentions(line) and name in line for line in text.split("\n"))]
    after = EnvFile(Path("x"), text).updated(new)
    end = "\r\n" if "\r\n" in text else "\n"
    block = "".join(f"{name}={new[name]}{end}" for name in absent)
    assert after.endswith(block)
    if absent and text.strip():
        assert after.removesuffix(block).split("\n")[-2].strip() == ""
    if "\r\n" in text:
        assert after.count("\n") == after.count("\r\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "MANAGER_CLIENT_ID=new\n"),
        ("MANAGER_CLIENT_ID=old # note\n", "MANAGER_CLIENT_ID=new\n"),
        ("  MANAGER_CLIENT_ID = 'old'\n", "  MANAGER_CLIENT_ID = new\n"),
        ("  #MANAGER_CLIENT_ID = old\n", "MANAGER_CLIENT_ID=new\n"),
        ("# MANAGER_CLIENT_ID=\n", "MANAGER_CLIENT_ID=new\n"),
        ("export MANAGER_CLIENT_ID=old\n", "export MANAGER_CLIENT_ID=new\n"),
        ("MANAGER_CLIENT_ID=1\nA=2\n#MANAGER_CLIENT_ID=3", "MANAGER_CLIENT_ID=new\nA=2\nMANAGER_CLIENT_ID=new"),
        ("A=1", "A=1\n\nMANAGER_CLIENT_ID=new\n"),
        ("A=1\n\n", "A=1\n\nMANAGER_CLIENT_ID=new\n"),
        ("A=1\r\n", "A=1\r\n\r\nMANAGER_CLIENT_ID=new\r\n"),
        ("# how MANAGER_CLIENT_ID=x is set\n", "# how MANAGER_CLIENT_ID=x is set\n\nMANAGER_CLIENT_ID=new\n"),
        ("\ufeffA=1\n", "\ufeffA=1\n\nMANAGER_CLIENT_ID=new\n"),
        ("USER=${MANAGER_CLIENT_ID}\n", "USER=${MANAGER_CLIENT_ID}\n\nMANAGER_CLIENT_ID=new\n"),
    ],
)  # fmt: skip
def test_the_rules_by_example(text: str, expected: str) -> None:
    assert EnvFile(Path("x"), text).updated({"MANAGER_CLIENT_ID": "new"}) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('MANAGER_CLIENT_ID="two\nlines"\n', "new"),
        ("A='\nMANAGER_CLIENT_ID=x\n'\n", "new"),
        ("", "two\nlines"),
        ("", "a # b"),
        ("", '"quoted"'),
    ],
)
def test_what_does_not_fit_on_a_line_is_refused(text: str, value: str) -> None:
    with pytest.raises(StartError, match="cannot be set a line at a time"):
        EnvFile(Path("x"), text).updated({"MANAGER_CLIENT_ID": value})


def test_values_are_read_as_compose_reads_them(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "A=1\nA=2\n B = three # not this\nC=\"four # this\"\nD='$x'\n# E=5\nexport F=6\nG=\nH=#7\nI=${A}/${C}\nJ= # none\n"
    )
    assert EnvFile.read(path).values == {
        "A": "2", "B": "three", "C": "four # this", "D": "$x", "F": "6", "G": "", "H": "#7", "I": "2/four # this", "J": "",
    }  # fmt: skip


def test_a_file_is_made_changed_and_backed_up(tmp_path: Path) -> None:
    path = tmp_path / "prod.env"
    file = EnvFile.read(path)
    assert file.text is None
    assert file.write(file.updated({"A": "1"}))
    assert path.read_text() == "A=1\n"
    assert not file.backup.exists()
    path.chmod(0o644)
    again = EnvFile.read(path)
    assert again.write(again.updated({"A": "2", "B": "3"}))
    assert path.read_text() == "A=2\n\nB=3\n"
    assert (tmp_path / "prod.env.bak").read_text() == "A=1\n"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, file.backup)] == [0o600, 0o600]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["prod.env", "prod.env.bak"]


def test_nothing_is_written_where_nothing_changes_but_others_may_not_read_it(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(0o644)
    before = path.stat()
    file = EnvFile.read(path)
    assert not file.write(file.updated({"A": "1"}))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert stat.S_IMODE(after.st_mode) == 0o600
    assert not file.backup.exists()


def test_whose_file_it_is_may_still_read_it_when_the_superuser_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = tmp_path / ".env", []
    path.write_text("A=1\n")
    owner = path.stat()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *call: given.append(call))
    EnvFile.read(path).write("A=2\n")
    assert given == [(each, owner.st_uid, owner.st_gid) for each in (tmp_path / ".env.bak", path)]


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("A=1\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"A=1\nB=\xe9\n")
    (tmp_path / "broken").write_text('A=1\n\n\nB="open\n')
    (tmp_path / "prose").write_text("A=1\nnot a variable\n")
    for name, expected in {
        "link": f"symbolic link.*--env-file {tmp_path / 'real'}",
        "folder": "is a folder",
        "latin": "line 2: not UTF-8",
        "broken": "line 4: not NAME=value",
        "prose": "line 2: not NAME=value",
        "real/x": "Not a directory",
    }.items():
        with pytest.raises(StartError, match=expected):
            EnvFile.read(tmp_path / name)
    assert (tmp_path / "link").is_symlink()


def test_read_only_files_and_folders_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ".env"
    path.parent.mkdir()
    path.write_text("A=1\n")
    file = EnvFile.read(path)
    for place, mode in ((path, 0o400), (path.parent, 0o500)):
        usual = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        with pytest.raises(StartError, match="is read-only: allow writing"):
            file.write("A=2\n")
        place.chmod(usual)
    assert path.read_text() == "A=1\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartError, match="No space left on device"):
        EnvFile.read(path).write("A=2\n")
    assert path.read_text() == "A=1\n"
    assert [each.name for each in tmp_path.iterdir()] == [".env"]


def test_the_default_is_beside_the_compose_file_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_env_file() == Path(".env")
    (tmp_path / "deploy").mkdir()
    assert default_env_file() == Path("deploy/.env")


def test_the_guides_eighteen_variables() -> None:
    assert len(set(GUIDE_VARIABLES)) == 18
    assert {"MANAGER_DOMAIN_ID", "PROXY_CHANNEL_ID", "PROPLET_CLIENT_KEY", "PROPLET_3_CLIENT_ID"} < set(
        GUIDE_VARIABLES
    )
    assert id_variable("proplet-11") == "PROPLET_11_CLIENT_ID"
    assert client_variables(["fl-coordinator"]) == ["COORDINATOR_CLIENT_ID", "COORDINATOR_CLIENT_KEY"]
    written = env_values("d", "c", {"proplet-4": {"id": "4", "key": "k"}})
    assert written["PROPLET_4_CLIENT_KEY"] == "k"
    assert written["PROXY_DOMAIN_ID"] == "d"
