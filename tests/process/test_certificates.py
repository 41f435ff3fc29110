"""The authority of a stack, and the certificates that it signs, in real handshakes."""

import asyncio
import datetime as dt
import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.process import certificates, tls
from propeller.process.certificates import SERVER_DAYS, Authority, read_certificate
from propeller.process.tls import KeyPair, keep_current, stack_trust, trust
from support.net import eventually


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "certs")
    made.ensure()
    return made


def handshake(context: ssl.SSLContext, shown: ssl.SSLContext, host: str) -> bytes:
    """What a client gets of a server's certificate; in memory, over a pair of sockets."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            shown.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    server = threading.Thread(target=answer)
    server.start()
    try:
        with context.wrap_socket(ours, server_hostname=host) as connection:
            return connection.getpeercert(binary_form=True) or b""
    finally:
        ours.close()
        server.join()


def shown_by(cert: Path, key: Path) -> ssl.SSLContext:
    return KeyPair(cert, key, "CERT", "KEY").server_context()


def test_a_client_that_has_the_authority_believes_the_hosts_and_no_others(
    authority: Authority, tmp_path: Path
) -> None:
    hosts = ["fleet.example", "*.site.example", "127.0.0.1", "::1", "bücher.example"]
    shown = shown_by(*authority.ensure_server("server", hosts))
    context = trust(authority.file, "CA")
    for host in ("fleet.example", "a.site.example", "127.0.0.1", "::1", "bücher.example"):
        assert handshake(context, shown, host)
    for host in ("other.example", "127.0.0.2", "fleet.example.evil.example"):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(context, shown, host)
    other = Authority(tmp_path / "other")
    other.ensure()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(trust(other.file, "CA"), shown, "fleet.example")


def test_what_it_signed_is_no_authority(authority: Authority) -> None:
    cert, _key = authority.ensure_server("server", ["fleet.example"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(trust(cert, "CA"), shown_by(*authority.ensure_server("other", ["a.example"])), "a.example")


def test_files_are_made_once_and_private(authority: Authority) -> None:
    first = authority.ensure_server("server", ["fleet.example"])
    before = [file.read_bytes() for file in (*first, authority.file)]
    authority.ensure()
    assert authority.ensure_server("server", ["fleet.example"]) == first
    assert [file.read_bytes() for file in (*first, authority.file)] == before
    for name in ("ca-key.pem", "server-key.pem"):
        assert stat.S_IMODE((authority.file.parent / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.file.parent.stat().st_mode) == 0o700
    said = read_certificate(first[0])
    assert (said.hosts, said.days_left()) == (("fleet.example",), SERVER_DAYS - 1)
    assert said.issuer == read_certificate(authority.file).subject


def test_another_is_made_for_other_hosts_before_the_end_and_for_what_is_broken(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> str:
        return read_certificate(authority.ensure_server("server", ["fleet.example"])[0]).fingerprint

    seen = [made()]
    authority.ensure_server("server", ["fleet.example", "10.0.0.1"])
    seen.append(made())
    with monkeypatch.context() as soon:
        soon.setattr(certificates, "SERVER_DAYS", certificates.RENEW_DAYS)
        (authority.file.parent / "server.pem").unlink()
        seen.append(made())
    seen.append(made())
    (authority.file.parent / "server-key.pem").write_text("x")
    seen.append(made())
    assert len(set(seen)) == len(seen)


@given(st.text(max_size=300))
def test_what_is_no_host_is_refused(host: str) -> None:
    try:
        name = certificates._general_name(host)  # noqa: SLF001
    except StartError:
        pass
    else:
        assert not set(str(name.value).removeprefix("*.")) & set(" /@*\0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "ca-key.pem").unlink(), "ca-key.pem: No such file"),
        (lambda folder: (folder / "ca.pem").unlink(), "ca.pem: No such file"),
        (lambda folder: (folder / "ca-key.pem").write_text("x"), "holds no PEM private key"),
        (lambda folder: (folder / "ca.pem").write_text("x"), "holds no PEM certificate"),
        (
            lambda folder: (folder / "server-key.pem").rename(folder / "ca-key.pem"),
            "is not the key of ca.pem",
        ),
    ],
)
def test_half_an_authority_is_no_new_one(authority: Authority, damage: object, message: str) -> None:
    authority.ensure_server("server", ["fleet.example"])
    damage(authority.file.parent)  # type: ignore[operator]
    with pytest.raises(StartError, match=message):
        authority.ensure()


async def test_a_server_shows_what_is_in_its_files_and_warns_before_the_end(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CHECK_S", 0.01)
    monkeypatch.setattr(certificates, "SERVER_DAYS", tls.WARN_DAYS)
    pair = KeyPair(*authority.ensure_server("server", ["fleet.example"]), "THE_CERT", "THE_KEY")
    seen = pair.versions()
    shown, client = pair.server_context(), trust(authority.file, "CA")
    first = handshake(client, shown, "fleet.example")
    with capture_logs() as logs:
        watch = asyncio.create_task(keep_current(pair, seen, lambda: pair.load_into(shown)))

        def said(what: str) -> list[object]:
            return [line for line in logs if line["event"].startswith(what)]

        try:
            await eventually(lambda: said("the certificate ends soon"))
            monkeypatch.setattr(certificates, "SERVER_DAYS", SERVER_DAYS)
            key = pair.key.read_bytes()
            pair.key.write_bytes(authority.ensure_server("other", ["fleet.example"])[1].read_bytes())
            await eventually(lambda: said("the certificate has changed and cannot be used"))
            assert handshake(client, shown, "fleet.example") == first
            pair.key.write_bytes(key)
            authority.ensure_server("server", ["fleet.example", "new.example"])
            await eventually(lambda: handshake(client, shown, "fleet.example") != first)
            assert handshake(client, shown, "new.example")
        finally:
            watch.cancel()
    assert len(said("the certificate ends soon")) == 1
    assert any("THE_CERT" in str(line) for line in logs)


async def test_one_that_is_replaced_while_its_server_starts_is_shown(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CHECK_S", 0.01)
    pair = KeyPair(*authority.ensure_server("server", ["fleet.example"]), "THE_CERT", "THE_KEY")
    seen, shown, client = pair.versions(), pair.server_context(), trust(authority.file, "CA")
    first = handshake(client, shown, "fleet.example")
    authority.ensure_server("server", ["fleet.example", "new.example"])
    watch = asyncio.create_task(keep_current(pair, seen, lambda: pair.load_into(shown)))
    try:
        await eventually(lambda: handshake(client, shown, "fleet.example") != first)
    finally:
        watch.cancel()


def test_two_who_make_a_certificate_leave_no_pair_of_halves(authority: Authority) -> None:
    names = [f"host-{number}.example" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda name: authority.ensure_server("server", [name]), names):
            pass
    KeyPair(*authority.ensure_server("server", [names[0]]), "CERT", "KEY").server_context()


def test_a_certificate_with_malformed_names_is_told(tmp_path: Path) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fleet.example")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .add_extension(
            x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x00\x01"),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "odd.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(StartError, match=r"odd\.pem: its extensions cannot be read"):
        read_certificate(file)


async def test_a_link_that_is_replaced_while_it_is_read_ends_no_watch(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tls, "CHECK_S", 0.01)
    cert, key = authority.ensure_server("server", ["fleet.example"])
    link = tmp_path / "current.pem"
    link.symlink_to(cert)
    pair = KeyPair(link, key, "THE_CERT", "THE_KEY")
    seen = pair.versions()
    pair.server_context()
    check = tls._check_readable  # noqa: SLF001

    def remove_afterwards(file: Path, setting: str) -> None:
        check(file, setting)
        link.unlink(missing_ok=True)

    reloads: list[bool] = []
    with capture_logs() as logs:
        watch = asyncio.create_task(keep_current(pair, seen, lambda: reloads.append(True)))
        try:
            with monkeypatch.context() as patched:
                patched.setattr(tls, "_check_readable", remove_afterwards)
                await asyncio.sleep(0)
                link.unlink()
                link.symlink_to(authority.ensure_server("other", ["fleet.example"])[0])
                await eventually(lambda: not link.is_symlink())
            link.symlink_to(cert)
            await eventually(lambda: bool(reloads))
        finally:
            watch.cancel()
    refused = [
        line for line in logs if line["event"].startswith("the certificate has changed and cannot be used")
    ]
    assert any("THE_CERT" in line["reason"] for line in refused)


def test_the_authority_is_that_of_the_variable(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(tls.CA_VARIABLE, raising=False)
    assert stack_trust() is None
    monkeypatch.setenv(tls.CA_VARIABLE, str(authority.file))
    assert stack_trust() is not None
    monkeypatch.setenv(tls.CA_VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(StartError, match=r"PROPELLER_CA_CERT: .*none\.pem cannot be read"):
        stack_trust()


def test_one_that_has_ended_is_said_to_have(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    good = read_certificate(authority.ensure_server("server", ["fleet.example"])[0])
    assert good.explain_end().endswith(f"in {good.days_left()} days")
    monkeypatch.setattr(certificates, "_now", lambda: good.not_after + dt.timedelta(days=2))
    assert good.explain_end() == f"ended on {good.not_after:%Y-%m-%d}: nobody connects"
