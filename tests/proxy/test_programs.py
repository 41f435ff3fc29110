"""The cache of blobs."""

import os
import time
from pathlib import Path

import pytest

from propeller.digests import digest_of
from propeller.proxy.programs import BlobCache


def fill(cache: BlobCache, *sizes: int) -> list[str]:
    digests = []
    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        cache.put(digest_of(data), data)
        digests.append(digest_of(data))
    return digests


def age(folder: Path, digest: str, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(folder / digest.replace(":", "-"), (moment, moment))


def test_what_is_put_is_there_after_a_restart(tmp_path: Path) -> None:
    (digest,) = fill(BlobCache(tmp_path, 1000), 10)
    again = BlobCache(tmp_path, 1000)
    assert again.size(digest) == 10
    assert again.get(digest) == b"\0" * 10
    assert again.get(digest_of(b"other")) is None
    assert again.size(digest_of(b"other")) is None


def test_what_was_changed_on_disk_is_not_given_and_goes(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)
    (digest,) = fill(cache, 10)
    (tmp_path / digest.replace(":", "-")).write_bytes(b"\1" * 10)
    assert cache.get(digest) is None
    assert cache.size(digest) is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 100)
    first, second, third = fill(cache, 30, 31, 32)
    for number, digest in enumerate((first, second, third)):
        age(tmp_path, digest, 100 - number)
    assert cache.get(first) is not None
    data = b"x" * 33
    cache.put(digest_of(data), data)
    assert [cache.size(digest) for digest in (first, second, third)] == [30, None, 32]


def test_a_program_larger_than_the_cache_is_kept_alone(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 50)
    small, large = fill(cache, 20, 60)
    assert [cache.size(digest) for digest in (small, large)] == [None, 60]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)

    def fail() -> None:
        with cache.writer(digest_of(b"")) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "killed.part").write_bytes(b"half")
    BlobCache(tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_evicted_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 50)
    (digest,) = fill(cache, 40)
    file = cache.open(digest)
    assert file is not None
    with file:
        fill(cache, 41)
        assert os.pread(file.fileno(), 100, 0) == b"\0" * 40
