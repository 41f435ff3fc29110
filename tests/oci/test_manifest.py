"""Manifests: the one that is written, and which layer of others is the program."""

import json
from typing import Any

import pytest

from propeller.digests import digest_of
from propeller.oci import manifest
from propeller.oci.errors import UnsupportedArtifactError
from propeller.oci.manifest import Descriptor

HEX = "sha256:" + "1" * 64


def layer(media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": HEX, "size": 5}


def test_the_manifest_is_that_of_oras_push() -> None:
    program = Descriptor.of(manifest.WASM, b"\0asm....", {manifest.TITLE: "fl-client.wasm"})
    assert json.loads(manifest.program_manifest(program)) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.unknown.artifact.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "size": 2,
            "data": "e30=",
        },
        "layers": [
            {
                "mediaType": "application/wasm",
                "digest": digest_of(b"\0asm...."),
                "size": 8,
                "annotations": {"org.opencontainers.image.title": "fl-client.wasm"},
            }
        ],
    }


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/wasm", True),
        ("application/vnd.wasm.content.layer.v1+wasm", True),
        ("application/vnd.module.wasm.content.layer.v1+wasm", True),
        ("Application/WASM; charset=binary", True),
        ("application/vnd.oci.image.layer.v1.tar+gzip", False),
        ("application/octet-stream", False),
        ("application/vnd.propeller.native.v1+json", True),
    ],
)
def test_media_types_of_wasm(media_type: str, expected: bool) -> None:
    assert manifest.is_program_type(media_type) is expected


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"\xff", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{}", "no layers"),
        (json.dumps({"manifests": []}).encode(), "image index"),
        (json.dumps({"mediaType": manifest.DOCKER_LIST}).encode(), "image index"),
        (json.dumps({"layers": [3]}).encode(), "layer that cannot be read"),
        (json.dumps({"layers": [{**layer("a"), "size": "5"}]}).encode(), "layer that cannot be read"),
        (json.dumps({"layers": [{**layer("a"), "size": True}]}).encode(), "layer that cannot be read"),
        (json.dumps({"layers": [{**layer("a"), "digest": "sha512:ab"}]}).encode(), "not a sha256 digest"),
    ],
)
def test_what_is_not_a_manifest_is_refused(document: bytes, said: str) -> None:
    with pytest.raises(UnsupportedArtifactError, match=said) as caught:
        manifest.read_layers(document, "x")
    assert "propeller push" in caught.value.remedy


def entry(digest: str, **platform: str) -> dict[str, Any]:
    named = {"platform": platform} if platform else {}
    return {"mediaType": manifest.IMAGE_MANIFEST, "digest": f"sha256:{digest * 64}", "size": 5, **named}


ATTESTATION = entry("f", architecture="unknown", os="unknown")


@pytest.mark.parametrize(
    "entries",
    [
        [entry("a")],
        [entry("a", architecture="wasm", os="wasip1"), ATTESTATION],
        [entry("b", architecture="amd64", os="linux"), entry("a", architecture="wasm32", os="wasi")],
        [entry("a", architecture="amd64", os="linux"), ATTESTATION],
    ],
)
def test_an_index_stands_for_its_only_image_for_wasm(entries: list[dict[str, Any]]) -> None:
    document = json.dumps({"mediaType": manifest.IMAGE_INDEX, "manifests": entries}).encode()
    assert manifest.select_from_index(document, "x") == "sha256:" + "a" * 64
    assert manifest.select_from_index(json.dumps({"layers": []}).encode(), "x") is None


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "0 images"),
        ([ATTESTATION], "0 images"),
        ([entry("a"), entry("b")], "2 images"),
        (
            [entry("a", architecture="wasm"), entry("b", os="wasip2")],
            r"2 images .* \(its platforms: wasip2, wasm\)",
        ),
        ([3, {"digest": "../x"}], "1 images"),
        ({"digest": 5}, "0 images"),
    ],
)
def test_another_index_is_refused(entries: Any, said: str) -> None:
    with pytest.raises(UnsupportedArtifactError, match=said):
        manifest.select_from_index(json.dumps({"manifests": entries}).encode(), "x")


def test_not_one_program_says_what_there_is() -> None:
    tar = Descriptor("application/tar", HEX, 5)
    with pytest.raises(UnsupportedArtifactError, match=r"no Wasm layer \(its layers: application/tar\)"):
        manifest.select_program([], "x", [tar])
    with pytest.raises(UnsupportedArtifactError, match="2 Wasm layers instead of one"):
        manifest.select_program([tar, tar], "x", [tar, tar])
    with pytest.raises(UnsupportedArtifactError, match=r"\(its layers: none\)"):
        manifest.select_program([], "x", [])
