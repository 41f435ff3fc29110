"""Whether a device has what a native program requires, and what it lacks."""

from collections.abc import Iterator, Mapping

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from propeller.errors import InvalidError
from propeller.protocol.requirements import NativePython, Requirements


def check_requirements(required: Requirements) -> None:
    """See that requirements can be read and checked.

    Raises:
        InvalidError: one cannot; the text names it and the remedy.
    """
    for _name, _requirement in _parsed(required):
        pass
    _specifier(required.python)


def lacking(required: Requirements, device: NativePython | None) -> str | None:
    """Why a device cannot run a native program; ``None`` if it has what is required.

    ``device`` is ``None`` where native programs are not switched on.
    """
    if device is None:
        return "native programs are not switched on there (PROPLET_NATIVE_PYTHON)"
    try:
        wanted, dependencies = _specifier(required.python), list(_parsed(required))
    except InvalidError as error:
        return str(error)
    missing = []
    if not _holds(wanted, device.version):
        missing.append(f"Python {required.python} (it has {device.version})")
    environment = _environment(device.version)
    for name, requirement in dependencies:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        has = device.distributions.get(name)
        if has is None:
            cut = "" if device.complete else f" (as far as its list of {len(device.distributions)} tells)"
            missing.append(f"{requirement}{cut}")
        elif not _holds(requirement.specifier, has):
            missing.append(f"{requirement} (it has {has})")
    return f"it lacks {', '.join(missing)}" if missing else None


def _parsed(required: Requirements) -> Iterator[tuple[str, Requirement]]:
    for text in required.dependencies:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise InvalidError(
                f"dependencies: {text!r} is no requirement, such as scikit-learn>=1.4: {str(error).splitlines()[0]}"
            ) from None
        if requirement.url is not None:
            raise InvalidError(
                f"dependencies: {text!r}: devices install nothing: give versions, and no address"
            )
        yield canonicalize_name(requirement.name), requirement


def _specifier(python: str) -> SpecifierSet:
    try:
        return SpecifierSet(python)
    except InvalidSpecifier:
        raise InvalidError(
            f"requires-python: {python!r} is no specifier of versions, such as >=3.11"
        ) from None


def _holds(wanted: SpecifierSet, version: str) -> bool:
    if not wanted:
        return True
    try:
        return wanted.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _environment(python: str) -> Mapping[str, str]:
    """Markers are those of a Linux device with this version of Python; of the machine, this one's."""
    return {
        **default_environment(),  # type: ignore[dict-item]
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
