"""Device state: what a program keeps on a device between the rounds of an experiment."""

import json
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from propeller.errors import NotFoundError, RefusedError
from propeller.program.library_arrays import given, is_foreign, taken
from propeller.tensors import session
from propeller.tensors.array import Array, open_tensor
from propeller.tensors.files import DEVICE_STATE, STATE_FOLDER, STATE_TENSORS

_LIBRARY_PREFIX = "@"
"""What begins with it belongs to this library, which does the device's part of a strategy with it."""

_VALUES_FILE = "values.json"


class DeviceState(MutableMapping[str, Any]):
    """Arrays, and values that JSON can express, by name.

    In a task they are what the last round of the experiment left on this device, and are saved when the function has returned
    and its update was accepted. In a test it begins empty.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._entries: dict[str, Any] = dict(values or {})

    def __getitem__(self, name: str) -> Any:
        entries = self._opened()
        if name not in entries or name.startswith(_LIBRARY_PREFIX):
            raise KeyError(f"the device state has no {name!r}; it has {', '.join(self) or 'nothing'}")
        entries[name] = given(entries[name])  # kept, so that a change in place is one of the state
        return entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep a value.

        Raises:
            TypeError: It is neither an array nor JSON.
            ValueError: The name is not for programs.
        """
        self._check_writable()
        if not name or str(name).startswith(_LIBRARY_PREFIX):
            raise ValueError(
                f"state: {name!r} is no name for a value: it must not begin with {_LIBRARY_PREFIX!r}"
            )
        if not isinstance(value, Array) and not is_foreign(value):
            _encode(name, value)
        self._opened()[name] = value

    def __delitem__(self, name: str) -> None:
        self._check_writable()
        self[name]  # raises for what is not there
        del self._opened()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in self._opened() if not name.startswith(_LIBRARY_PREFIX)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"DeviceState({dict(self)!r})"

    def library_arrays(self, kind: str) -> dict[str, Array]:
        """What this library keeps of a kind, such as ``control``, by the names of the model's tensors."""
        prefix = f"{_LIBRARY_PREFIX}{kind}/"
        return {
            name.removeprefix(prefix): value
            for name, value in self._opened().items()
            if name.startswith(prefix)
        }

    def keep_library_arrays(self, kind: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays of a kind for this library in the place of those before."""
        self._check_writable()
        prefix, entries = f"{_LIBRARY_PREFIX}{kind}/", self._opened()
        for name in [name for name in entries if name.startswith(prefix)]:
            del entries[name]
        entries |= {prefix + name: value for name, value in arrays.items()}

    def _opened(self) -> dict[str, Any]:
        return self._entries

    def _check_writable(self) -> None:
        """Raises RefusedError where nothing can be kept."""


class TaskState(DeviceState):
    """The device state of a task: read from ``/state`` at its first use, written back by ``save``."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        """Args: root: of the task's files; environment: the task's."""
        super().__init__()
        self._folder, self._environment = root / STATE_FOLDER, environment
        self._read = False

    def save(self) -> None:
        """Write everything, if anything was used.

        Raises:
            TypeError: A value is not JSON any more.
            TensorError: The arrays cannot be written.
        """
        if not self._read or not self._writable:
            return
        entries = {name: taken(value) for name, value in self._entries.items()}
        arrays = {name: value for name, value in entries.items() if isinstance(value, Array)}
        values = {name: value for name, value in entries.items() if name not in arrays}
        text = (
            "{"
            + ", ".join(f"{json.dumps(str(name))}: {_encode(name, value)}" for name, value in values.items())
            + "}"
        )
        (self._folder / _VALUES_FILE).write_text(text)
        if arrays:
            session.current().main.save(arrays, DEVICE_STATE)
        else:
            (self._folder / STATE_TENSORS).unlink(missing_ok=True)

    @property
    def _writable(self) -> bool:
        return (self._environment.get("FL_MODE") or "train") == "train"

    def _check_writable(self) -> None:
        if not self._writable:
            raise RefusedError(
                "state: an evaluation reads the device state and does not change it; change it in @train"
            )

    def _opened(self) -> dict[str, Any]:
        if not self._read:
            if not self._folder.is_dir():
                raise NotFoundError(f"state: there is no device state in this task: {self._absence()}")
            file = self._folder / _VALUES_FILE
            if file.exists():
                self._entries |= json.loads(file.read_text())
            specs = session.current().main.describe(DEVICE_STATE)
            self._entries |= {name: open_tensor(DEVICE_STATE, name, spec) for name, spec in specs.items()}
            self._read = True
        return self._entries

    def _absence(self) -> str:
        if not self._environment.get("EXPERIMENT_ID"):
            return "it belongs to no experiment (EXPERIMENT_ID is not set)"
        return "this proplet keeps none: its PROPLET_TASK_STATE_BYTES, or the experiment's limit state_bytes, must be above 0"


def _encode(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"state: {name!r} is neither an array nor JSON: {error}") from None
