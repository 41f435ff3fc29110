"""What a device's owner lets it run: the file, and what it decides."""

import base64
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from propeller.data import program_path
from propeller.digests import digest_of
from propeller.oci.manifest import WASM, Descriptor, program_manifest
from propeller.oci.signing import SigningKey
from propeller.proplet.errors import TaskError
from propeller.proplet.policy import DAYS, Hours, Policy, PolicyError, PolicyFile
from propeller.protocol.programs import ProgramSignature, ResolvedProgram
from propeller.wasm.program_run import Limits

MONDAY = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
KEY, OTHER = SigningKey.make(), SigningKey.make()
PROGRAM = b"\0asm\1\0\0\0"


def policy(folder: Path, text: str) -> Policy:
    file = folder / "policy.toml"
    file.write_text(text)
    return Policy.read(file)


def test_without_a_file_everything_runs() -> None:
    now = PolicyFile(None).current()
    now.check_time(MONDAY)
    now.check_reference("anywhere/x:v1")
    now.check_signature("x", None)
    now.check_program("x", b"")
    assert now.lowered(Limits()) == Limits()


def test_the_whole_file(tmp_path: Path) -> None:
    KEY.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    found = policy(
        tmp_path,
        """
        repositories = ["ghcr.io/acme/*"]
        signers = ["acme.pub"]
        may = ["clock", "random"]
        hours = ["22:00-06:00", "12:00-13:00"]
        days = ["mon"]
        [limits]
        wall_time_s = 0.5
        memory_bytes = 1000
        """,
    )
    assert [signer.name for signer in found.signers] == ["acme"]
    assert found.may == frozenset({"clock", "random"})
    assert [str(part) for part in found.hours] == ["22:00-06:00", "12:00-13:00"]
    limits = found.lowered(Limits(memory_bytes=500))
    assert (limits.wall_time_s, limits.memory_bytes) == (0.5, 500)


def test_the_example_is_one() -> None:
    example = Policy.read(Path(__file__).parents[2] / "examples" / "policy.toml")
    example.check_reference("127.0.0.1:5000/fl-client-wasm:latest")
    example.check_program("the guide's", program_path("logreg").read_bytes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repositries = ['x']", "repositries: there is no such field; there are repositories"),
        ("repositories = 'x'", "repositories: must be a list of texts"),
        ("repositories = []", "repositories: must be a list of texts, with one at least"),
        ("may = ['clok']", "may: 'clok' is none of clock"),
        ("may = ['network']", "may: 'network' is none of"),
        ("hours = ['22-6']", "hours: '22-6' is not a part of a day; write it as 22:00-06:00"),
        ("hours = ['24:00-06:00']", "hours: '24:00-06:00' is not"),
        ("hours = ['06:00-06:00']", "hours: '06:00-06:00' is not"),
        ("days = ['monday']", "days: 'monday' is none of mon"),
        ("[limits]\nwall_time = 1", "limits.wall_time: there is no such limit; there are wall_time_s"),
        ("[limits]\nwall_time_s = 0", "limits.wall_time_s: 0 is not a number above 0"),
        ("[limits]\nmemory_bytes = 1.5", "limits.memory_bytes: 1.5 is not a whole number above 0"),
        ("[limits]\nwall_time_s = nan", "limits.wall_time_s: nan is not a number above 0"),
        ("limits = 1", "limits: must be a table"),
        ("signers = ['none.pub']", "none.pub cannot be read"),
        ("x = ", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(tmp_path, text)
    assert message in str(caught.value)
    assert "PROPLET_POLICY: " in str(caught.value)


@given(
    st.timedeltas(timedelta(), timedelta(days=400)),
    st.times(), st.times(), st.sets(st.integers(0, 6), min_size=1),
)  # fmt: skip
def test_a_part_of_a_day_begins_on_its_days(
    later: timedelta, begin: object, end: object, days: set[int]
) -> None:
    if begin == end:
        return
    now = MONDAY + later
    part = Hours(begin, end)  # type: ignore[arg-type]
    begun = datetime.combine(now.date(), part.begin, UTC)
    if begun > now:
        begun -= timedelta(days=1)
    ends = datetime.combine(begun.date(), part.end, UTC)
    if ends <= begun:
        ends += timedelta(days=1)
    assert part.contains(now, frozenset(days)) == (now < ends and begun.weekday() in days)


def test_outside_its_hours_a_device_says_when(tmp_path: Path) -> None:
    found = policy(tmp_path, 'hours = ["22:00-06:00"]\ndays = ["mon", "fri"]')
    found.check_time(MONDAY.replace(hour=23))
    found.check_time(MONDAY + timedelta(hours=15))  # Tuesday, 3:00: it began on Monday
    with pytest.raises(TaskError, match=r"takes part 22:00-06:00 on mon, fri, and it is Mon 12:00 here"):
        found.check_time(MONDAY)
    assert policy(tmp_path, f'days = ["{DAYS[0]}"]').is_open(MONDAY)
    assert not policy(tmp_path, f'days = ["{DAYS[1]}"]').is_open(MONDAY)


@pytest.mark.parametrize(
    ("reference", "runs"),
    [
        ("ghcr.io/acme/x:v1", True),
        ("ghcr.io/acme/deep/x@sha256:0", True),
        ("https://ghcr.io/acme/x", True),
        ("ghcr.io/acmes/x", False),
        ("ghcr.io/other/x:acme", False),
        ("evil.example/ghcr.io/acme/x", False),
        ("x:v1", False),
    ],
)
def test_programs_come_from_repositories_that_are_named(tmp_path: Path, reference: str, runs: bool) -> None:
    found = policy(tmp_path, 'repositories = ["ghcr.io/acme/*"]')
    if runs:
        found.check_reference(reference)
    else:
        with pytest.raises(TaskError, match=r"do not run here, only those of ghcr\.io/acme/\*"):
            found.check_reference(reference)


def resolved(manifest: bytes | None, digest: str, *keys: SigningKey) -> ResolvedProgram:
    def text(content: bytes) -> str:
        return base64.b64encode(content).decode()

    signed = [key.sign("r/x", digest_of(manifest or b"")) for key in keys]
    return ResolvedProgram(
        app_name="r/x",
        digest=digest,
        manifest=None if manifest is None else text(manifest),
        signatures=[ProgramSignature(payload=text(one.payload), value=text(one.value)) for one in signed],
    )


def test_the_proxy_is_not_believed_about_signatures(tmp_path: Path) -> None:
    KEY.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    found = policy(tmp_path, 'signers = ["acme.pub"]')
    manifest, digest = program_manifest(Descriptor.of(WASM, PROGRAM)), digest_of(PROGRAM)
    found.check_signature("r/x", resolved(manifest, digest, OTHER, KEY))
    other = program_manifest(Descriptor.of(WASM, PROGRAM + b"\0"))
    for told, message in (
        (None, "does not send signatures"),
        (resolved(None, digest, KEY), "does not send signatures"),
        (resolved(manifest, digest), "it has no signature"),
        (resolved(manifest, digest, OTHER), "none of its 1 signatures"),
        (resolved(other, digest, KEY), "the proxy named another program"),
        (resolved(b"no manifest", digest, KEY), "cannot be read"),
        (resolved(manifest, digest, KEY).model_copy(update={"manifest": "%"}), "cannot be read"),
    ):
        with pytest.raises(TaskError, match=message):
            found.check_signature("r/x", told)


def test_a_program_that_may_do_more_is_refused(tmp_path: Path) -> None:
    found = policy(tmp_path, 'may = ["random"]')
    found.check_program("r/x", PROGRAM)
    name = b"wasi:clocks/wall-clock@0.2.0"
    section = bytes([1, 0, len(name)]) + name + bytes([5, 0])
    clock = b"\0asm\r\0\1\0" + bytes([10, len(section)]) + section
    with pytest.raises(TaskError, match=r"r/x may read the time: clock is not in its may"):
        found.check_program("r/x", clock)


def test_a_change_counts_at_once_and_a_mistake_stops_everything(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('repositories = ["a/*"]')
    watched = PolicyFile(file)
    assert watched.current().repositories == ("a/*",)
    first = watched.current()
    assert watched.current() is first
    for text in ("repositories = [", None):
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
            os.utime(file, ns=(1, 1))
        for _ in range(2):
            with pytest.raises(TaskError, match="its policy file has a mistake, which its log tells"):
                watched.current()
        assert not watched.is_open()
    file.write_text('repositories = ["b/*"]')
    assert watched.current().repositories == ("b/*",)
    assert watched.is_open()
    with pytest.raises(PolicyError, match="cannot be read"):
        PolicyFile(tmp_path / "none.toml")


def test_a_key_that_is_replaced_counts_at_once_and_one_that_comes_later(tmp_path: Path) -> None:
    KEY.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    file = tmp_path / "policy.toml"
    file.write_text('signers = ["acme.pub"]')
    watched = PolicyFile(file)
    manifest, digest = program_manifest(Descriptor.of(WASM, PROGRAM)), digest_of(PROGRAM)
    watched.current().check_signature("r/x", resolved(manifest, digest, KEY))
    (tmp_path / "acme.pub").unlink()
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(TaskError, match="its policy file has a mistake"):
                watched.current()
    assert len(logs) == 1  # once, whoever asks
    OTHER.write(tmp_path / "other.key", tmp_path / "acme.pub", b"")
    watched.current().check_signature("r/x", resolved(manifest, digest, OTHER))
    with pytest.raises(TaskError, match="none of its 1 signatures"):
        watched.current().check_signature("r/x", resolved(manifest, digest, KEY))
