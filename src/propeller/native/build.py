"""Building programs: what a script's metadata says decides whether it becomes a Wasm program or a native one."""

from pathlib import Path

from propeller.digests import digest_of
from propeller.errors import InvalidError
from propeller.fl.requirements import check_requirements
from propeller.native_program import (
    MAX_IMPORTS,
    NATIVE_ENDING,
    NativeProgram,
    NativeProgramError,
    ScriptMetadata,
)
from propeller.process.files import write_durably
from propeller.protocol.requirements import Requirements
from propeller.wasm.build import BuildError, BuildResult, build
from propeller.wasm.build.sources import collect_sources, foreign_imports, functions_in, sets_variables


def metadata_of(script: Path) -> ScriptMetadata:
    """What a script's metadata says; of one that is not there, nothing.

    Raises:
        BuildError: it has a mistake.
    """
    try:
        return ScriptMetadata.of(script.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):  # who builds it says so
        return ScriptMetadata()
    except NativeProgramError as error:
        raise BuildError(f"{script}: {error}") from None


def ending_for(script: Path) -> str:
    """How the name ends of the file that a script becomes."""
    return NATIVE_ENDING if metadata_of(script).native else ".wasm"


def build_program(
    script: Path,
    output: Path,
    *,
    standalone: bool = False,
    host_tensors: bool = True,
    cache: Path | None = None,
) -> BuildResult:
    """Build a script into what its metadata says: a native program, or as ``wasm.build.build`` does.

    Raises:
        BuildError: The script has an error, or its metadata; the text says which.
    """
    metadata = metadata_of(script)
    if not metadata.native:
        return build(script, output, standalone=standalone, host_tensors=host_tensors, cache=cache)
    if standalone or not host_tensors:
        raise BuildError(
            f"{script}: a native program has no form but its own: leave --standalone and --plain out"
        )
    content = native_program(script, metadata).encode()
    try:
        write_durably(output, content)
    except OSError as error:
        raise BuildError(f"{output}: cannot be written: {error.strerror}") from None
    return BuildResult(output, digest_of(content), len(content), cached=False)


def native_program(script: Path, metadata: ScriptMetadata) -> NativeProgram:
    """The native program that a script is, with the modules beside it that it imports.

    Raises:
        BuildError: it has an error, marks no function, or requires what cannot be read.
    """
    sources = collect_sources(script, native=True)
    functions = functions_in(sources)
    if "aggregate" in functions:
        raise BuildError(
            f"{script}: @aggregate is for Wasm programs: the aggregator runs no native ones; leave tool.propeller.native out for it"
        )
    try:
        check_requirements(
            Requirements(python=metadata.requires_python, dependencies=list(metadata.dependencies))
        )
    except InvalidError as error:
        raise BuildError(f"{script}: {error}") from None
    return NativeProgram(
        script.stem,
        {name.removesuffix(".py"): text for name, text in sources.items()},
        tuple(functions),
        metadata.requires_python,
        metadata.dependencies,
        () if sets_variables(sources) else foreign_imports(sources)[:MAX_IMPORTS],
    )
