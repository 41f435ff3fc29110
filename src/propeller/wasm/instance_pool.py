"""Memory that is kept for the next instance of a program: for a process that runs one program again and again.

A fresh instance of CPython writes to about a thousand pages of its 13 MiB, and the kernel copies each when it is first written to, which takes
a third of a short task. With the runtime's pooling allocator the pages stay, and the runtime itself puts back what was in them when an
instance ends: an instance begins as every other one does, whatever ran before it. It loads what was compiled without it.

wasmtime-py has no public function for it; this module uses the C API behind it, as ``text_function.py`` does, which is the same for all releases of a major version.
"""

from typing import Any

import wasmtime
from wasmtime import _bindings

MAX_INSTANCES, MAX_TABLES, MAX_MEMORIES = 256, 64, 16
"""Of one program, with those of the modules in a component."""

_ELEMENT_BYTES = 8
_MEMORY_BYTES = 1 << 32
"""Address space for each memory, which the runtime takes without a pool, too; the store's limit bounds what of it is used."""

_KEPT_BYTES = 64 << 20
"""Of each memory; what a program has used beyond goes back to the kernel."""

_KEPT_TABLE_BYTES = 1 << 20
_MAX_INSTANCE_BYTES = 1 << 30
"""Of the runtime's own record of an instance; nothing is kept for it."""


def use_pool(config: wasmtime.Config, table_elements: int) -> None:
    """Give an engine memory for one program at a time.

    Args:
        config: of the engine.
        table_elements: of each table, at most.
    """
    pool = _bindings.wasmtime_pooling_allocation_config_new()
    for name, value in (
        ("total_core_instances", MAX_INSTANCES),
        ("max_core_instances_per_component", MAX_INSTANCES),
        ("total_component_instances", MAX_INSTANCES),
        ("total_tables", MAX_TABLES),
        ("max_tables_per_module", MAX_TABLES),
        ("max_tables_per_component", MAX_TABLES),
        ("total_memories", MAX_MEMORIES),
        ("max_memories_per_module", MAX_MEMORIES),
        ("max_memories_per_component", MAX_MEMORIES),
        ("total_gc_heaps", 1),
        ("total_stacks", 1),
        ("max_core_instance_size", _MAX_INSTANCE_BYTES),
        ("max_component_instance_size", _MAX_INSTANCE_BYTES),
        ("max_memory_size", _MEMORY_BYTES),
        ("table_elements", table_elements),
        ("linear_memory_keep_resident", _KEPT_BYTES),
        ("table_keep_resident", _KEPT_TABLE_BYTES),
    ):
        setter: Any = getattr(_bindings, f"wasmtime_pooling_allocation_config_{name}_set")
        setter(pool, value)
    _bindings.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    _bindings.wasmtime_pooling_allocation_config_delete(pool)


def pool_bytes(table_elements: int) -> int:
    """The writable memory that a pool maps ahead, whether it is used or not."""
    return MAX_TABLES * table_elements * _ELEMENT_BYTES
