"""Signatures in cosign's format: keys, payloads, and what is beside an artifact in a registry."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from propeller.digests import digest_of
from propeller.errors import StartError
from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.oci.signatures import PAYLOAD, SIGNATURE, Signature, signature_of, signature_tag, signed_digest
from propeller.oci.signers import Signers
from propeller.oci.signing import PublicKey, SignatureError, SigningKey, verify
from support.registries import embedded, wasm

KEY, OTHER = SigningKey.make(), SigningKey.make()
DIGEST = digest_of(b"a manifest")


def test_keys_survive_their_files_and_a_wrong_password_is_said(tmp_path: Path) -> None:
    private, public = tmp_path / "acme.key", tmp_path / "acme.pub"
    KEY.write(private, public, b"secret")
    assert private.stat().st_mode & 0o777 == 0o600
    read, shown = SigningKey.read(private, b"secret"), PublicKey.read(public, "signers")
    assert shown.name == "acme"
    assert verify([read.sign("r/x", DIGEST)], DIGEST, [shown]) is shown
    with pytest.raises(StartError, match="the password is wrong"):
        SigningKey.read(private, b"another")
    with pytest.raises(FileExistsError):
        OTHER.write(private, public, b"")
    with pytest.raises(FileExistsError):
        OTHER.write(tmp_path / "other.key", public, b"")
    assert not (tmp_path / "other.key").exists()
    assert PublicKey.read(public, "signers").key == shown.key


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for content in (b"", b"x", b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\ne30=\n-----END X-----"):
        file.write_bytes(content)
        with pytest.raises(StartError, match="is no private key"):
            SigningKey.read(file, b"")
        with pytest.raises(StartError, match=r"PROXY_SIGNERS: .* holds no PEM public key"):
            PublicKey.read(file, "PROXY_SIGNERS")
    other = rsa.generate_private_key(65537, 2048)
    pkcs8 = serialization.PrivateFormat.PKCS8
    file.write_bytes(other.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    with pytest.raises(StartError, match="is not an ECDSA key"):
        SigningKey.read(file, b"")
    plain = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(plain.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    read = SigningKey.read(file, b"")
    assert verify([read.sign("r/x", DIGEST)], DIGEST, [read.public("plain")]).name == "plain"
    with pytest.raises(StartError, match="cannot be read"):
        PublicKey.read(tmp_path / "none", "signers")


def test_who_has_signed_what() -> None:
    mine, others = KEY.public("mine"), OTHER.public("other")
    by_me, by_other = KEY.sign("r/x", DIGEST), OTHER.sign("r/x", DIGEST)
    assert verify([by_other, by_me], DIGEST, [mine]) is mine
    assert verify([by_other], DIGEST, [mine, others]) is others
    for signatures, digest, message in (
        ([], DIGEST, "it has no signature"),
        ([by_other], DIGEST, "none of its 1 signatures is by one of these keys"),
        ([by_me], digest_of(b"another"), "none of its 1 signatures"),
        ([Signature(by_me.payload.replace(b"r/x", b"r/y"), by_me.value)], DIGEST, "none of its 1"),
        ([Signature(by_me.payload, b"")], DIGEST, "none of its 1"),
    ):
        with pytest.raises(SignatureError, match=message):
            verify(signatures, digest, [mine])


@given(st.binary(max_size=200), st.binary(max_size=80))
def test_whatever_is_sent_as_a_signature_is_none(payload: bytes, value: bytes) -> None:
    with pytest.raises(SignatureError):
        verify([Signature(payload, value)], DIGEST, [KEY.public("mine")])


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.just(DIGEST),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["critical", "image", "type"]), inner)
        ),
    )
)
def test_a_payload_is_about_an_artifact_or_nothing(document: object) -> None:
    assert signed_digest(json.dumps(document).encode()) is None


def test_what_cosign_made_is_read() -> None:
    """Key pair and signature of cosign 2.4.1: generate-key-pair, sign --key. That it reads what is made here was tried by hand."""
    folder = Path(__file__).parent / "cosign"
    signed = json.loads((folder / "signed.json").read_text())
    signature = Signature(signed["payload"].encode(), base64.b64decode(signed["signature"]))
    public = PublicKey.read(folder / "cosign.pub", "signers")
    digest = "sha256:2cd700bfd1cc58c75ed49fe68f23cc8b0c9fd8ce096539eeffeed2ffe1999cde"
    assert verify([signature], digest, [public]) is public
    key = SigningKey.read(folder / "cosign.key", b"pw")
    assert verify([key.sign("127.0.0.1:15999/acme/x", digest)], digest, [public]) is public
    assert key.sign("127.0.0.1:15999/acme/x", digest).payload == signature.payload


async def test_signatures_are_beside_the_artifact_and_each_adds_one(tmp_path: Path) -> None:
    async with embedded(tmp_path) as host, RegistryClient() as registry:
        reference = Reference.parse(f"{host}/acme/x:v1")
        pushed = await registry.push(reference, wasm())
        assert await registry.signatures(reference, pushed.digest) == []
        made = [key.sign(f"{host}/acme/x", pushed.digest) for key in (KEY, OTHER)]
        for one in made:
            await registry.add_signature(reference, pushed.digest, one)
        assert await registry.signatures(reference, pushed.digest) == made
        # As cosign lays it out: a tag made of the digest, the payload as a layer, and the signature as its annotation.
        beside = await registry._get_document(reference, f"sha256-{pushed.digest[7:]}.sig")  # noqa: SLF001
        assert signature_tag(pushed.digest) == f"sha256-{pushed.digest[7:]}.sig"
        layers = json.loads(beside)["layers"]
        assert [layer["mediaType"] for layer in layers] == [PAYLOAD] * 2
        assert all(layer["annotations"][SIGNATURE] for layer in layers)
        payload = json.loads(made[0].payload)
        assert payload == {
            "critical": {
                "identity": {"docker-reference": f"{host}/acme/x"},
                "image": {"docker-manifest-digest": pushed.digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
        assert signature_of(pushed.program) is None


def test_commas_alone_do_not_let_everybodys_programs_run() -> None:
    """As of two variables that are not set."""
    assert not Signers.read(" ", "proxy")
    with pytest.raises(StartError, match="PROXY_SIGNERS: ' , ' names no file: name one, or unset it"):
        Signers.read(" , ", "proxy")
