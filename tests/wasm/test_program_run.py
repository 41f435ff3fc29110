"""What is asked of a sandbox."""

from propeller.wasm.program_run import Limits, limit_error


def test_a_limit_is_named_with_its_value_and_unit() -> None:
    assert limit_error("wall_time_s", 2.0) == "wall_time_s: over the limit of 2 s"
    assert limit_error("wall_time_s", 0.25) == "wall_time_s: over the limit of 0.25 s"
    assert limit_error("memory_bytes", 536870912) == "memory_bytes: over the limit of 536870912 bytes"
    assert limit_error("out_files", 64) == "out_files: over the limit of 64 files"
    assert Limits(fuel=5).error("fuel") == "fuel: over the limit of 5 instructions"
