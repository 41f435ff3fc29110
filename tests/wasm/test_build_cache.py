"""The cache of built programs."""

import os
from pathlib import Path

from propeller.wasm.build.python import BuildCache


def test_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    builds = BuildCache(tmp_path / "cache", max_bytes=25)
    for age, key in ((30, "a"), (20, "b")):
        builds.add(key, key.encode() * 10)
        os.utime(tmp_path / "cache" / f"{key}.wasm", (1000 - age, 1000 - age))
    assert builds.get("a") == b"a" * 10  # and is the newest now
    builds.add("c", b"c" * 10)
    assert (builds.get("a"), builds.get("b"), builds.get("c")) == (b"a" * 10, None, b"c" * 10)
    builds.add("large", b"d" * 100)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["large.wasm"]


def test_what_killed_builds_left_goes(tmp_path: Path) -> None:
    left, running = tmp_path / "building-old", tmp_path / "building-new"
    for place in (left, running):
        (place / "path").mkdir(parents=True)
    half = tmp_path / ".a.wasm.123456789012.tmp"
    half.touch()
    for old in (left, half):
        os.utime(old, (0, 0))
    BuildCache(tmp_path)
    assert list(tmp_path.iterdir()) == [running]
