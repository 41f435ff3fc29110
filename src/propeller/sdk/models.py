"""The model versions of a stack: what there is, how two differ, aliases, and files."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote

from propeller.errors import InvalidError, NotFoundError, PropellerError
from propeller.process.files import DurableFile
from propeller.protocol.models import LINEAGE_FIELD, lineage_text
from propeller.protocol.wire import MalformedMessageError, decode_trusted
from propeller.sdk.connection import Connection
from propeller.sdk.handle import find_experiment
from propeller.sdk.transport import Blocking, Upload, blocking
from propeller.sdk.values import SAFETENSORS, decode_model, encode_model, plain, read_npz

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

MEDIA_TYPES = {
    ".safetensors": SAFETENSORS,
    ".npz": "application/x-npz",
    ".json": "application/json",
}
"""The encodings of a model by the end of a file's name."""

_NOT_FOUND = "Model not found: "
_COMMANDS = {"GET /models": "propeller model list", "GET /aliases": "propeller model alias"}
"""What the registry names in its errors, and the command that does it."""

SLOW_S = 600.0
"""How long what reads whole models may take, in seconds."""


class AsyncModels:
    """The model versions of a stack.

    Where a method takes a version, it takes ``latest`` and aliases too; and in an alias such as ``EXPERIMENT/best`` also the name of
    experiments, of which the newest is meant, where there is no alias as it is written.
    """

    def __init__(self, connection: Connection) -> None:
        """Use the registry and the coordinator of ``connection``."""
        self._connection = connection

    def __repr__(self) -> str:
        """Shows where they are."""
        return f"<{type(self).__name__} of {self._connection.urls['model_registry']}>"

    async def list(
        self,
        *,
        experiment: str | None = None,
        strategy: str | None = None,
        alias: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """What is known of the newest versions that fit, newest first; ``experiment`` is an id, or the name of the newest one.

        Raises:
            NotFoundError: there is no such experiment.
            PropellerError: a filter cannot be one, or there is no such alias.
        """
        filters = {"strategy": strategy, "alias": alias}
        params: dict[str, Any] = {"details": 1, "limit": limit, "offset": offset}
        params |= {name: value for name, value in filters.items() if value is not None}
        if experiment is None:
            found: list[dict[str, Any]] = (await self._ask("GET", "/models", params=params))["models"]
            return found
        found = await self._of_experiment(experiment, params)
        if found:
            return found
        try:
            id_ = (await find_experiment(self._connection, experiment)).id
        except (
            NotFoundError
        ):  # a version may be of one that is not here: it was imported, or its experiment was removed
            if not await self._of_experiment(experiment, {"details": 1, "limit": 1}):
                raise
            return []
        except PropellerError:
            return []
        return [] if id_ == experiment else await self._of_experiment(id_, params)

    async def _of_experiment(self, experiment: str, params: dict[str, Any]) -> Any:
        return (await self._ask("GET", "/models", params=params | {"experiment": experiment}))["models"]

    async def info(self, version: int | str) -> dict[str, Any]:
        """What is known of a version: ``version``, ``created_at``, ``tensors``, ``lineage``, ``aliases`` …

        Raises:
            NotFoundError: there is none.
        """

        async def ask(exact: int | str) -> dict[str, Any]:
            found: dict[str, Any] = await self._ask("GET", f"/models/{_path(exact)}/info")
            return found

        return await self._find(ask, version)

    async def arrays(self, version: int | str = "latest") -> "dict[str, np.ndarray[Any, Any]]":
        """A version as NumPy arrays by tensor name, in the dtypes that it has; they can be changed.

        Raises:
            NotFoundError: there is none.
        """

        async def ask(exact: int | str) -> bytes:
            headers, path = {"Accept": SAFETENSORS}, f"/models/{_path(exact)}"
            return (await self._connection.send("GET", "model_registry", path, headers=headers)).content

        return decode_model(await self._find(ask, version))

    async def diff(self, first: int | str, second: int | str) -> dict[str, Any]:
        """How the second version differs from the first: ``tensors``, ``total``, ``lineage``.

        Raises:
            NotFoundError: there is none.
        """

        async def ask(first: int | str, second: int | str) -> dict[str, Any]:
            path = f"/models/{_path(first)}/diff/{_path(second)}"
            found: dict[str, Any] = await self._ask("GET", path, timeout=SLOW_S)
            return found

        return await self._find(ask, first, second)

    async def aliases(self) -> dict[str, int]:
        """Every alias and its version."""
        found: dict[str, int] = (await self._ask("GET", "/aliases"))["aliases"]
        return found

    async def set_alias(self, name: str, version: int | str) -> int:
        """Have an alias stand for a version from now on; gives the version's number.

        Raises:
            NotFoundError: there is no such version.
            InvalidError: the name cannot be an alias.
        """
        number = version if isinstance(version, int) else int((await self.info(version))["version"])
        await self._ask("PUT", f"/aliases/{_path(name)}", json={"version": number})
        return number

    async def delete_alias(self, name: str) -> None:
        """Forget an alias.

        Raises:
            NotFoundError: there is none of this name.
        """
        try:
            await self._connection.send("DELETE", "model_registry", f"/aliases/{_path(name)}")
        except NotFoundError as error:
            raise _as_commands(error) from None

    async def export(self, version: int | str, file: str | Path) -> int:
        """Write a version to a file, in the encoding of its name (``MEDIA_TYPES``); gives the version's number.

        Whatever its size, little of it is in memory. A file that is there is replaced, once the new one is whole.

        Raises:
            InvalidError: the name says no encoding.
            NotFoundError: there is no such version.
            PropellerError: the file cannot be written.
        """
        target = Path(file)
        headers = {"Accept": _media_type(target)}
        try:
            with DurableFile(target.parent, target.name) as new:

                async def ask(exact: int | str) -> int:
                    path = f"/models/{_path(exact)}"
                    answer = await self._connection.download(
                        "model_registry", path, new.stream, headers=headers, timeout=SLOW_S
                    )
                    return int(answer.headers["x-model-version"])

                number = await self._find(ask, version)
                new.commit(target)
        except OSError as error:
            raise PropellerError(f"{target} cannot be written: {error.strerror or error}") from None
        return number

    async def put(
        self,
        model: Mapping[str, Any],
        *,
        version: int | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> int:
        """Store a model as a version; gives its number.

        Args:
            model: arrays by tensor name (NumPy's, or what ``np.asarray`` takes), which keep their dtypes; numbers and
                nested lists of them become float64.
            version: its number; the next one if it is not given.
            lineage: where it comes from: the fields of a lineage (``protocol.models.Lineage``), and any of your own.

        Raises:
            InvalidError: something is no array of finite numbers, or a field of the lineage is wrong; the text names it.
            ConflictError: the version is there with other content.
        """
        content = encode_model(model, _metadata(lineage))
        headers, params = {"Content-Type": SAFETENSORS}, {} if version is None else {"version": version}
        answer = await self._ask(
            "POST", "/models", content=content, headers=headers, params=params, timeout=SLOW_S
        )
        return int(answer["version"])

    async def load(
        self, file: str | Path, *, version: int | None = None, lineage: Mapping[str, Any] | None = None
    ) -> int:
        """Store a file as a version; gives its number.

        Its encoding is that of its name (``MEDIA_TYPES``). Whatever its size, little of it is in memory if it is safetensors.

        Args:
            file: where it is.
            version: its number; the next one if it is not given.
            lineage: where it comes from, as of ``put``. Default: what a safetensors file says itself.

        Raises:
            InvalidError: the name says no encoding, the file is no model, or a field of the lineage is wrong.
            ConflictError: the version is there with other content.
            PropellerError: the file cannot be read.
        """
        source = Path(file)
        headers, params = (
            {"Content-Type": _media_type(source)},
            {} if version is None else {"version": version},
        )
        try:
            if source.suffix == ".json":  # in a field, as a version and a lineage may be beside it
                body: Any = {"model": _read_json(source), **params}
                if lineage is not None:
                    body["lineage"] = plain(lineage, "lineage")
                answer = await self._ask("POST", "/models", json=body, timeout=SLOW_S)
            elif lineage is not None and source.suffix == ".npz":  # which has no place for one
                return await self.put(read_npz(source), version=version, lineage=lineage)
            else:
                with source.open("rb") as stream:  # noqa: ASYNC230 - no wait worth a thread
                    content = Upload(stream) if lineage is None else _with_lineage(stream, source, lineage)
                    answer = await self._connection.upload(
                        "model_registry", "/models", content, headers=headers, params=params, timeout=SLOW_S
                    )
        except OSError as error:
            raise PropellerError(f"{source}: {error.strerror or error}") from None
        return int(answer["version"])

    async def verify(self, version: int | str) -> dict[str, Any]:
        """Whether a version is what its round's updates make: ``verified``, ``digest``, ``recomputed``, ``updates``.

        Raises:
            NotFoundError: there is no such version.
            PropellerError: it cannot be computed again; the text says why.
        """
        number = (await self.info(version))["version"]
        path = f"/models/{number}/verify"
        found: dict[str, Any] = await self._connection.ask("POST", "coordinator", path, timeout=SLOW_S)
        return found

    async def _find(self, ask: Callable[..., Awaitable[T]], *versions: int | str) -> T:
        """What ``ask`` gives for versions; if there is no such alias, for those of the experiments that have these names."""
        try:
            return await ask(*versions)
        except NotFoundError as error:
            exact = [await self._exact(one) for one in versions]
            if exact == [*versions]:
                raise _as_commands(error) from None
        try:
            return await ask(*exact)
        except NotFoundError as error:
            raise _as_commands(error) from None

    async def _exact(self, version: int | str) -> int | str:
        experiment, slash, alias = str(version).partition("/")
        return f"{await self._id_of(experiment)}/{alias}" if slash else version

    async def _id_of(self, experiment: str) -> str:
        """The id of an experiment by its id or name; what was given, if there is none or the coordinator does not say."""
        try:
            return (await find_experiment(self._connection, experiment)).id
        except PropellerError:
            return experiment

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        return await self._connection.ask(method, "model_registry", path, **options)


class Models(Blocking[AsyncModels]):
    """The model versions of a stack; the methods are described at ``AsyncModels``."""

    list = blocking(AsyncModels.list)
    info = blocking(AsyncModels.info)
    arrays = blocking(AsyncModels.arrays)
    diff = blocking(AsyncModels.diff)
    aliases = blocking(AsyncModels.aliases)
    set_alias = blocking(AsyncModels.set_alias)
    delete_alias = blocking(AsyncModels.delete_alias)
    export = blocking(AsyncModels.export)
    put = blocking(AsyncModels.put)
    load = blocking(AsyncModels.load)
    verify = blocking(AsyncModels.verify)


def _as_commands(error: NotFoundError) -> NotFoundError:
    """What the registry says to whoever calls it by HTTP, in the words of a person's commands."""
    text = str(error).partition(_NOT_FOUND)[2] or str(error)
    for route, command in _COMMANDS.items():
        text = text.replace(route, f"'{command}'")
    return NotFoundError(text)


def _path(version: int | str) -> str:
    return quote(str(version), safe="/")


def _media_type(file: Path) -> str:
    kind = MEDIA_TYPES.get(file.suffix)
    if kind is None:
        raise InvalidError(f"{file}: the name must end in {', '.join(MEDIA_TYPES)}, which says the encoding")
    return kind


def _metadata(lineage: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if lineage is None else {LINEAGE_FIELD: lineage_text(plain(lineage, "lineage"))}


def _with_lineage(stream: BinaryIO, file: Path, lineage: Mapping[str, Any]) -> Upload:
    """A safetensors file whose header has another lineage."""
    from propeller.fl.tensors import TensorError
    from propeller.fl.tensors.safetensors import PREFIX, header_length, read_header
    from propeller.tensors.safetensors import replace_metadata

    try:
        prefix = stream.read(PREFIX)
        document = prefix + stream.read(header_length(prefix))
        metadata = read_header(document).metadata | _metadata(lineage)
        return Upload(stream, *replace_metadata(document, metadata))
    except TensorError as error:
        raise InvalidError(f"{file}: {error}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return decode_trusted(file.read_bytes())
    except MalformedMessageError as error:
        raise InvalidError(f"{file}: {error}") from None
