"""The image-layout folder: what it holds, and that writers and crashes do not hurt it."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from propeller.digests import digest_of
from propeller.oci.errors import DamagedLayoutError, DigestMismatchError
from propeller.oci.layout import MAX_UPLOAD_AGE_S, Layout
from propeller.oci.manifest import IMAGE_MANIFEST


def store(layout: Layout, repository: str, target: str, data: bytes = b"{}") -> str:
    return layout.store_manifest(repository, target, IMAGE_MANIFEST, data).digest


def test_it_is_an_image_layout(tmp_path: Path) -> None:
    digest = store(Layout(tmp_path), "a/b", "v1")
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    names = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]}
    assert names == {"a/b:v1", f"a/b@{digest}"}
    assert (tmp_path / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes() == b"{}"


def test_tags_move_and_repositories_are_apart(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second = store(layout, "a", "v1"), store(layout, "a", "v1", b'{"x":1}')
    store(layout, "a/b", "v2")
    found = layout.find_manifest("a", "v1")
    assert found is not None
    assert found.digest == second
    assert layout.find_manifest("a", first) is not None
    assert layout.find_manifest("b", first) is None
    assert (layout.list_tags("a"), layout.list_tags("a/b"), layout.list_tags("b")) == (["v1"], ["v2"], None)
    assert layout.list_repositories() == ["a", "a/b"]
    assert [entry.digest for entry in layout.list_manifests("a")] == [first, second]


def test_deleting_a_manifest_takes_its_tags(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    digest = store(layout, "a", "v1")
    store(layout, "a", "v2")
    store(layout, "b", "v1")
    assert layout.delete_manifest("a", "v1")
    assert not layout.delete_manifest("a", "v1")
    assert layout.list_tags("a") == ["v2"]
    assert layout.delete_manifest("a", digest)
    assert layout.list_tags("a") is None
    assert layout.list_tags("b") == ["v1"]


def test_uploads_become_blobs_when_they_are_what_they_should_be(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    name = layout.start_upload()
    path = layout.find_upload(name)
    assert path is not None
    path.write_bytes(b"abc")
    with pytest.raises(DigestMismatchError):
        layout.finish_upload(name, digest_of(b"abd"))
    assert layout.find_upload(name) is None
    name = layout.start_upload()
    (tmp_path / "uploads" / name).write_bytes(b"abc")
    again = Layout(tmp_path)  # uploads survive a restart
    again.finish_upload(name, digest_of(b"abc"))
    blob = again.find_blob(digest_of(b"abc"))
    assert blob is not None
    assert blob.read_bytes() == b"abc"
    assert again.delete_blob(digest_of(b"abc"))
    assert not again.delete_blob(digest_of(b"abc"))


def test_old_uploads_are_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old, new = layout.start_upload(), layout.start_upload()
    past = time.time() - MAX_UPLOAD_AGE_S - 1
    os.utime(tmp_path / "uploads" / old, (past, past))
    again = Layout(tmp_path)
    assert again.find_upload(old) is None
    assert again.find_upload(new) is not None


@pytest.mark.parametrize("name", ["..", "../index.json", "a/b", "", ".lock"])
def test_upload_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    assert Layout(tmp_path).find_upload(name) is None


@pytest.mark.parametrize("digest", ["../index.json", "sha256:..", "sha256:" + "A" * 64, "sha512:00"])
def test_digests_cannot_leave_the_folder(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="not a sha256 digest"):
        Layout(tmp_path).find_blob(digest)


TAG_MANY = """
import json, sys
from pathlib import Path
from propeller.oci.layout import Layout
layout, prefix = Layout(Path(sys.argv[1])), sys.argv[2]
for number in range(10):
    data = json.dumps({"n": f"{prefix}{number}"}).encode()
    layout.store_manifest("a", f"{prefix}-{number}", "application/json", data)
"""


def test_writers_in_threads_and_processes_lose_nothing(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    command = [sys.executable, "-c", TAG_MANY, str(tmp_path)]
    others = [subprocess.Popen([*command, f"p{number}"]) for number in range(2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda at: store(layout, "a", f"t-{at}", json.dumps({"n": at}).encode()), range(30)))
    assert [other.wait() for other in others] == [0, 0]
    tags = layout.list_tags("a")
    assert tags is not None
    assert len(tags) == 50


def test_a_kill_while_writing_leaves_what_was_acknowledged(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from propeller.oci.layout import Layout\n"
        "layout = Layout(Path(sys.argv[1]))\n"
        "for n in range(100000):\n"
        "    layout.store_manifest('a', f'v{n}', 'application/json', b'%d' % n); print(n, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = -1
        for line in process.stdout:  # also what it wrote before the signal came
            if line.endswith(b"\n"):
                acknowledged = int(line)
            if acknowledged == 100:
                process.kill()
    layout = Layout(tmp_path)
    for number in range(acknowledged + 1):
        found = (
            layout.find_manifest("a", f"v{number}") if number % 10 == 0 or number == acknowledged else None
        )
        if found is not None:
            path = layout.find_blob(found.digest)
            assert path is not None
            assert path.read_bytes() == b"%d" % number
    tags = layout.list_tags("a")
    assert tags is not None
    assert len(tags) in {acknowledged + 1, acknowledged + 2}


def test_a_damaged_blob_is_set_aside_and_comes_back_when_it_is_pushed_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    digest = layout.store_blob(b"content")
    path = layout.find_blob(digest)
    assert path is not None
    path.write_bytes(b"cOntent")
    assert Layout(tmp_path).find_blob(digest) is None
    assert path.with_name(f"{path.name}.damaged").read_bytes() == b"cOntent"
    assert layout.find_blob(digest) is None
    assert layout.store_blob(b"content") == digest
    assert layout.find_blob(digest) == path
    path.write_bytes(b"damaged while it runs")
    assert layout.find_blob(digest) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"manifests":1}', b'{"manifests":[{}]}', b"\xff"])
def test_a_damaged_index_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    store(Layout(tmp_path), "a", "v1")
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(DamagedLayoutError) as caught:
        Layout(tmp_path)
    assert str(tmp_path / "index.json") in str(caught.value)
    assert "restore it from a backup, or remove it and push the programs again" in str(caught.value)
