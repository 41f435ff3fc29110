"""What a device's owner lets it run: a file on the device, which no service can change.

    repositories = ["ghcr.io/acme/*"]     # where programs come from; left out: anywhere
    signers = ["acme.pub"]                # files with public keys, one of which must have signed; left out: nobody
    may = ["clock", "random", "files"]    # what programs may reach; left out: all that the sandbox gives
    hours = ["22:00-06:00"]               # of this device's clock; left out: always
    days = ["mon", "tue"]                 # on which these begin; left out: on all

    [native]                              # whose native programs run; left out: nobody's. One of them at least, and both hold
    repositories = ["ghcr.io/acme/*"]
    signers = ["acme.pub"]

    [limits]                              # of a task, below those of the proplet
    wall_time_s = 60

The file is read again when it changes. One that cannot be read, or has a mistake, lets nothing run until it is mended.
"""

import base64
import binascii
import fnmatch
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from datetime import time as TimeOfDay  # noqa: N812 - a class, beside the module of that name
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propeller.digests import digest_of
from propeller.errors import StartError
from propeller.process.files import write_durably
from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError
from propeller.protocol.programs import ResolvedProgram
from propeller.protocol.strict import nearest_names
from propeller.wasm.capabilities import EXPLAINED, Capability, capabilities_of, told
from propeller.wasm.program_run import Limits

if TYPE_CHECKING:
    from propeller.oci.signing import PublicKey

log = get_logger("policy")

SETTING = "PROPLET_POLICY"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_FIELDS = ("repositories", "signers", "may", "hours", "days", "native", "limits")
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_MAY = tuple(one.value for one in Capability if one is not Capability.NETWORK)
"""The network is not among them: no sandbox gives it."""


class PolicyError(StartError):
    """A policy file has a mistake; the text names the field."""


@dataclass(frozen=True)
class Hours:
    """A part of a day; one that ends before it begins goes on into the next day."""

    begin: TimeOfDay
    end: TimeOfDay

    def contains(self, now: datetime, days: frozenset[int]) -> bool:
        """Whether a moment is in it, of a part that began on one of these days (0 is Monday)."""
        at = now.time()
        if self.begin < self.end:
            return self.begin <= at < self.end and now.weekday() in days
        if at >= self.begin:
            return now.weekday() in days
        return at < self.end and (now - timedelta(days=1)).weekday() in days

    def __str__(self) -> str:
        """As the file has it."""
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"


@dataclass(frozen=True)
class NativePolicy:
    """Whose native programs run: of which repositories, and signed by whom; one of them is said at least, and what is said must hold."""

    repositories: tuple[str, ...] | None = None
    signers: "tuple[PublicKey, ...]" = ()


@dataclass(frozen=True)
class Policy:
    """What may run here; the defaults let everything run.

    Attributes:
        repositories: patterns of repositories with their registry, as tasks name them (``*`` is any text); ``None``: any.
        signers: keys one of which must have signed a program; none: nobody need.
        may: what programs may import; ``None``: anything.
        hours: in which tasks may begin; none: at any.
        days: on which these hours begin.
        limits: of a task, by the names of ``Limits``.
        native: whose native programs run; ``None``: nobody's.
        keys: the files of all ``signers``.
    """

    repositories: tuple[str, ...] | None = None
    signers: "tuple[PublicKey, ...]" = ()
    may: frozenset[str] | None = None
    hours: tuple[Hours, ...] = ()
    days: frozenset[int] = frozenset(range(7))
    limits: Mapping[str, float] | None = None
    native: NativePolicy | None = None
    keys: tuple[Path, ...] = ()

    @classmethod
    def read(cls, file: Path) -> "Policy":
        """Read a policy file.

        Raises:
            PolicyError: it cannot be read, or has a mistake.
        """
        try:
            fields = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise PolicyError(f"{SETTING}: {file} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise PolicyError(f"{SETTING}: {file} is not TOML: {error}") from None
        try:
            return _read_fields(fields, file.parent)
        except ValueError as error:
            raise PolicyError(f"{SETTING}: {file}: {error}") from None

    def is_open(self, now: datetime) -> bool:
        """Whether tasks may begin at a moment of this device's clock."""
        if not self.hours:
            return now.weekday() in self.days
        return any(part.contains(now, self.days) for part in self.hours)

    def check_time(self, now: datetime) -> None:
        """See that a task may begin.

        Raises:
            TaskError: not at this hour.
        """
        if not self.is_open(now):
            when = ", ".join(map(str, self.hours)) or "all day"
            days = (
                ""
                if len(self.days) == len(DAYS)
                else f" on {', '.join(DAYS[day] for day in sorted(self.days))}"
            )
            raise _refused(f"it takes part {when}{days}, and it is {now:%a %H:%M} here")

    def check_reference(self, reference: str) -> None:
        """See that programs of a repository may run.

        Raises:
            TaskError: they may not.
        """
        _check_repository(reference, self.repositories, "programs")

    @property
    def needs_signatures(self) -> bool:
        """Whether programs, or native ones, must be signed."""
        return bool(self.signers or (self.native is not None and self.native.signers))

    def check_signature(self, reference: str, resolved: ResolvedProgram | None) -> None:
        """See that a program is signed, by what the proxy sent of its artifact; nothing of it is believed that a key has not signed.

        Raises:
            TaskError: it is not, or the proxy sent no signatures.
        """
        _verify(reference, resolved, self.signers)

    def unsigned(self, reference: str, resolved: ResolvedProgram | None) -> str:
        """Why a program, if it is a native one, is not signed as these must be; empty if it is."""
        try:
            _verify(reference, resolved, () if self.native is None else self.native.signers)
        except TaskError as error:
            return str(error)
        return ""

    def check_native(self, reference: str, unsigned: str) -> None:
        """See that a native program may run.

        Args:
            reference: of the program.
            unsigned: what ``unsigned`` said of it.

        Raises:
            TaskError: it may not.
        """
        if self.native is None:
            raise _refused(
                f"{reference} is a native program, and nobody's run here: its owner names whose in [native] of {SETTING}, and an interpreter "
                "in PROPLET_NATIVE_PYTHON"
            )
        _check_repository(reference, self.native.repositories, "native programs")
        if unsigned:
            raise TaskError(unsigned)

    def check_program(self, reference: str, program: bytes) -> None:
        """See that a program imports no more than it may.

        Raises:
            TaskError: it does.
        """
        if self.may is None:
            return
        too_much = {one for one in capabilities_of(program) if one in _MAY} - self.may
        if too_much:
            what = "; ".join(EXPLAINED[Capability(one)] for one in sorted(too_much))
            raise _refused(f"{reference} may {what}: {told(too_much)} is not in its may")

    def lowered(self, limits: Limits) -> Limits:
        """A proplet's limits, lower where the policy says so."""
        return limits.lowered(self.limits)


class PolicyFile:
    """The policy of a device, as its file has it now."""

    def __init__(self, file: Path | None) -> None:
        """Read it.

        Raises:
            PolicyError: it has a mistake: a device does not begin with one.
        """
        self._file, self._policy, self._mistake = file, Policy(), ""
        self._seen: list[_Version] = []
        if file is not None:
            before = _version(file)
            self._policy = Policy.read(file)
            self._seen = [before, *map(_version, self._policy.keys)]

    def current(self) -> Policy:
        """What holds now.

        Raises:
            TaskError: the file has a mistake since it was changed, so nothing runs.
        """
        if self._file is not None:
            found = [_version(file) for file in (self._file, *self._policy.keys)]
            if self._mistake or found != self._seen:  # a mistake may be in a file of which nobody knows yet
                self._read(self._file, found[0])
        if self._mistake:
            raise _refused("its policy file has a mistake, which its log tells")
        return self._policy

    def _read(self, file: Path, version: "_Version") -> None:
        try:
            self._policy = Policy.read(file)
        except StartError as error:
            if str(error) != self._mistake:
                log.warning("the policy has a mistake: no task runs until it is mended", reason=str(error))
            self._mistake = str(error)
        else:
            self._mistake = ""
            self._seen = [version, *map(_version, self._policy.keys)]
            log.info("the policy was read again", file=str(file))

    def has_native(self) -> bool:
        """Whether native programs of somebody may run."""
        try:
            return self.current().native is not None
        except TaskError:
            return False

    def is_open(self) -> bool:
        """Whether tasks may begin now."""
        try:
            return self.current().is_open(datetime.now().astimezone())
        except TaskError:
            return False


def _check_repository(reference: str, patterns: tuple[str, ...] | None, what: str) -> None:
    if patterns is None:
        return
    repository = _repository(reference)
    if not any(fnmatch.fnmatchcase(repository, pattern) for pattern in patterns):
        raise _refused(f"{what} of {repository} do not run here, only those of {', '.join(patterns)}")


def _verify(reference: str, resolved: ResolvedProgram | None, signers: "tuple[PublicKey, ...]") -> None:
    """See that one of some keys has signed what the proxy says that a reference is; without keys nobody need.

    Raises:
        TaskError: none has, or the proxy sent no signatures.
    """
    if not signers:
        return
    from propeller.oci.signatures import Signature
    from propeller.oci.signing import SignatureError, verify

    if resolved is None or resolved.manifest is None:
        raise _refused(f"{reference} must be signed, and the proxy does not send signatures: update it")
    try:
        manifest = base64.b64decode(resolved.manifest, validate=True)
        signatures = [
            Signature(
                base64.b64decode(one.payload, validate=True), base64.b64decode(one.value, validate=True)
            )
            for one in resolved.signatures or ()
        ]
        layers = {layer["digest"] for layer in json.loads(manifest)["layers"]}
    except (binascii.Error, ValueError, TypeError, KeyError, RecursionError):
        raise _refused(f"what the proxy sent of the signatures of {reference} cannot be read") from None
    if resolved.digest not in layers:
        raise _refused(f"the proxy named another program than {reference} is")
    try:
        signer = verify(signatures, digest_of(manifest), signers)
    except SignatureError as error:
        raise _refused(f"{reference} must be signed: {error}") from None
    log.info("program is signed", reference=reference, signer=signer.name)


NATIVE_POLICY = "native-policy.toml"
"""The file of a policy that a command wrote, for native programs of one stack."""


def write_native_policy(file: Path, repositories: Sequence[str], command: str) -> None:
    """Write a policy that lets native programs of some repositories run, and all others from anywhere.

    Args:
        file: where to.
        repositories: patterns.
        command: that writes it, for a person who reads it.
    """
    text = f"# Written by `{command}`; with PROPLET_POLICY a file of your own holds instead.\n[native]\nrepositories = {json.dumps(list(repositories))}\n"
    if not file.is_file() or file.read_text() != text:
        write_durably(file, text.encode(), mode=0o600)


def _refused(reason: str) -> TaskError:
    return TaskError(f"the policy of this device: {reason}")


def _repository(reference: str) -> str:
    """A reference without scheme, tag and digest."""
    name = reference.rpartition("://")[2].partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


_Version = tuple[int, int, int] | None
"""What tells whether a file was written or replaced; ``None`` while it is not there."""


def _version(file: Path) -> _Version:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read_fields(fields: Mapping[str, Any], folder: Path) -> Policy:
    for name in fields:
        if name not in _FIELDS:
            near = nearest_names(name, _FIELDS)
            raise ValueError(f"{name}: there is no such field; there are {', '.join(near or _FIELDS)}")
    may = _texts(fields, "may")
    for one in may or ():
        if one not in _MAY:
            raise ValueError(f"may: {one!r} is none of {', '.join(_MAY)}")
    native = _native(fields.get("native"), folder)
    return Policy(
        repositories=_texts(fields, "repositories"),
        signers=_signers(_texts(fields, "signers"), folder),
        may=None if may is None else frozenset(may),
        hours=tuple(_hours(text) for text in _texts(fields, "hours") or ()),
        days=_days(_texts(fields, "days")),
        limits=_limits(fields.get("limits", {})),
        native=native,
        keys=tuple(
            folder / name
            for table in (fields, fields.get("native", {}))
            for name in _texts(table, "signers") or ()
        ),
    )


def _native(given: Any, folder: Path) -> NativePolicy | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not given or not given.keys() <= {"repositories", "signers"}:
        raise ValueError("native: must be a table, [native], with repositories, signers, or both")
    try:
        return NativePolicy(_texts(given, "repositories"), _signers(_texts(given, "signers"), folder))
    except ValueError as error:
        raise ValueError(f"native.{error}") from None


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    found = fields.get(name)
    if found is None:
        return None
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"{name}: must be a list of texts, with one at least; leave it out for no bound")
    return tuple(found)


def _signers(names: tuple[str, ...] | None, folder: Path) -> "tuple[PublicKey, ...]":
    if names is None:
        return ()
    from propeller.oci.signing import PublicKey  # 9 MB, for devices that verify

    try:
        return tuple(PublicKey.read(folder / name, "signers") for name in names)
    except StartError as error:
        raise ValueError(str(error)) from None


def _hours(text: str) -> Hours:
    match = _HOURS.fullmatch(text)
    if match is not None:
        begin_hour, begin_minute, end_hour, end_minute = map(int, match.groups())
        found = Hours(TimeOfDay(begin_hour, begin_minute), TimeOfDay(end_hour, end_minute))
        if found.begin != found.end:
            return found
    raise ValueError(f"hours: {text!r} is not a part of a day; write it as 22:00-06:00")


def _days(names: tuple[str, ...] | None) -> frozenset[int]:
    for name in names or ():
        if name not in DAYS:
            raise ValueError(f"days: {name!r} is none of {', '.join(DAYS)}")
    return frozenset(range(7)) if names is None else frozenset(map(DAYS.index, names))


def _limits(given: Any) -> Mapping[str, float] | None:
    known = vars(Limits())
    if not isinstance(given, dict):
        raise ValueError("limits: must be a table, [limits]")  # noqa: TRY004 - of the file
    for name, value in given.items():
        if name not in known:
            near = nearest_names(name, known)
            raise ValueError(f"limits.{name}: there is no such limit; there are {', '.join(near or known)}")
        kinds = int | float if name.endswith("_s") else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
            whole = "" if name.endswith("_s") else "whole "
            raise ValueError(f"limits.{name}: {value!r} is not a {whole}number above 0")
    return given or None
