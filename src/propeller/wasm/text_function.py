"""A host function of a component that takes a text and answers with one: ``func(text: string) -> result<string, string>``.

wasmtime-py makes the types of such a function anew at each call, which takes longer than most programs' steps do. This module uses the C
API behind it, which is the same for all releases of a major version.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from wasmtime import WasmtimeError, _ffi, component
from wasmtime.component._enter import catch_exceptions

TextFunction = Callable[[str], tuple[bool, str]]
"""Gives whether it is done, and the answer or the error. What it raises ends the program, and is raised by who called that."""

_NOTHING_TO_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()


def add_text_function(instance: component.LinkerInstance, name: str, function: TextFunction) -> object:
    """Add the function to what programs can import.

    Returns:
        What must live as long as the linker.

    Raises:
        WasmtimeError: there is one of this name.
    """
    binding: Any = _ffi

    def call(_data: Any, context: Any, _type: Any, args: Any, _nargs: int, results: Any, _count: int) -> Any:
        def answer(_store: Any) -> None:
            given = args[0].of.string
            text = ctypes.string_at(given.data, given.size).decode()
            binding.wasm_byte_vec_delete(ctypes.byref(given))
            is_ok, said = function(text)
            content = said.encode()
            value = binding.wasmtime_component_val_t()
            value.kind = binding.WASMTIME_COMPONENT_STRING.value
            made = value.of.string
            binding.wasm_byte_vec_new_uninitialized(ctypes.byref(made), len(content))
            ctypes.memmove(made.data, content, len(content))
            result = results[0]
            result.kind = binding.WASMTIME_COMPONENT_RESULT.value
            result.of.result.is_ok = is_ok
            result.of.result.val = binding.wasmtime_component_val_new(ctypes.byref(value))

        return catch_exceptions(context, answer)

    kept = binding.wasmtime_component_func_callback_t(call)
    encoded = name.encode()
    error = binding.wasmtime_component_linker_instance_add_func(
        instance.ptr(), encoded, len(encoded), kept, None, _NOTHING_TO_FREE
    )
    if error:
        raise WasmtimeError._from_ptr(error)  # noqa: SLF001
    return kept
