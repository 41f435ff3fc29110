"""Whatever bytes come, each decoder at an edge reads them, or raises the error that it names: never another one.

Beside the decoders that have such tests of their own: messages and topics (``tests/protocol``), tensors (``tests/fl/tensors``), programs (``tests/wasm``),
backups (``tests/stack``).
"""

import asyncio
import base64
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cbor2
import httpx
import numpy as np
import pytest
import trustme
import zstandard
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from propeller.aggregator.documents import header_document, read_plan, read_tensors
from propeller.aggregator.program_task import read_aggregate
from propeller.cli.experiment_file import ExperimentFile, read_json
from propeller.coordinator.content_coding import coding_of_message
from propeller.coordinator.event_stream import read_last_event_id
from propeller.coordinator.registry_client import read_state_values
from propeller.coordinator.updates import MESSAGE, read_update, to_document
from propeller.errors import InvalidError, StartError, UnauthenticatedError
from propeller.fl.compression.description import read_description
from propeller.fl.tensors import JSON, SAFETENSORS, TensorError, TensorSpec, to_safetensors
from propeller.identity.callout import MalformedClaimsError, decode_token
from propeller.identity.credentials import TokenClaims, Tokens
from propeller.identity.service import _read_basic
from propeller.manager.task import decode_program
from propeller.mqtt.address import BrokerAddress
from propeller.oci.allowed import check_registries
from propeller.oci.authorization import Authorizer, Purpose, Scope, parse_challenges
from propeller.oci.credentials import docker_logins
from propeller.oci.errors import DamagedLayoutError, OciError, UnsupportedArtifactError
from propeller.oci.layout import Layout
from propeller.oci.manifest import WASM, Descriptor, program_manifest, read_layers
from propeller.oci.reference import Registry
from propeller.oci.responses import error_of
from propeller.oci.signatures import signed_digest
from propeller.oci.signing import PublicKey, SigningKey
from propeller.process.audit import DamagedError, read_lines
from propeller.process.certificates import read_certificate
from propeller.proplet.errors import TaskError
from propeller.proplet.policy import Policy, PolicyError
from propeller.proplet.updates import parse_program_output
from propeller.protocol.evaluations import read_evaluation
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.updates import CBOR
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.samples.idx_files import read_idx
from propeller.simulation.availability import RecordedHours
from propeller.simulation.datasets import read_dataset
from propeller.simulation.device_trace import DeviceTrace
from propeller.simulation.messages import WorkerError, read_message
from propeller.store.database import _parse
from support.oci_requests import ANYTHING

BASE = {"w": TensorSpec("F32", (2,))}
UPDATE = {
    "round_id": "r-1",
    "proplet_id": "p-1",
    "num_samples": 3,
    "metrics": {"loss": 0.5},
    "update": {"w": [1.0, 2.5]},
}
OUTPUT = json.dumps(UPDATE).encode()
EVALUATION = (
    json.dumps({**UPDATE, "update": None} | {"metrics": {"a": 1}}).replace(', "update": null', "").encode()
)
ENV = {"ROUND_ID": "r-1", "MODEL_URI": "fl/models/global_model_v0", "FL_UPDATE": '{"kind": "weights"}'}
TENSORS = to_safetensors(
    {"w": np.array([1.0, 2.5], np.float32)}, {"round_id": "r-1", "proplet_id": "p-1", "num_samples": "3"}
)
TYPED = cbor2.dumps(
    UPDATE
    | {"update": {"w": cbor2.CBORTag(40, [[2], cbor2.CBORTag(85, np.array([1.0, 2.5], "<f4").tobytes())])}}
)
PLAN = json.dumps(
    {"strategy": "fedavg", "contributions": [{"proplet_id": "p-1", "num_samples": 3}], "bases": 1, "parts": 1}
)
MANIFEST = program_manifest(Descriptor.of(WASM, b"\0asm"))
INDEX = b'{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"sha256:%s","size":1}]}' % (b"0" * 64)
EXPERIMENT = b"""program = "a/b:v1"
rounds = 3
strategy = { name = "fedavg" }
[selection]
count = 2
[hyperparams]
lr = 0.1
[simulation]
clients = 10
"""
POLICY = b"""repositories = ["a/*"]
may = ["clock"]
hours = ["22:00-06:00"]
days = ["mon"]
[limits]
memory_bytes = 1
"""
COMPRESSION = b'{"format":1,"error":0.1,"uncompressed":8,"tensors":[{"name":"w","dtype":"F32","shape":[2],"values":"int8"}]}'
PUBLIC_KEY = SigningKey.make().public("k").key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CERTIFICATE = trustme.CA().issue_cert("localhost").cert_chain_pems[0].bytes()
TOKENS = Tokens(b"k" * 32, access_s=86400, refresh_s=86400)


@dataclass(frozen=True)
class Decoder:
    """A decoder, the errors that it may raise, and what it reads, of which its input is made."""

    read: Callable[[bytes], Any]
    errors: tuple[type[Exception], ...]
    samples: tuple[bytes, ...] = ()


def of_text(read: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: read(data.decode(errors="replace"))


def of_file(read: Callable[[Path], Any], name: str = "file") -> Callable[[bytes], Any]:
    def written(data: bytes) -> Any:
        with TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(data)
            return read(file)

    return written


def read_and_check_update(content_type: str, coding: str | None = None) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        update = read_update(content_type, data, coding=coding, max_bytes=100_000)
        return to_document(update, BASE)

    return read


def read_message_over_mqtt(data: bytes) -> Any:
    return read_update(MESSAGE, data, coding=coding_of_message(data), max_bytes=100_000)


def refusal(status: int) -> Callable[[bytes], Any]:
    """What a registry says as it refuses."""

    def read(data: bytes) -> Any:
        answer = httpx.Response(status, content=data, request=httpx.Request("GET", "http://r"))
        found = asyncio.run(error_of(answer, "a/b:v1", "r", "log in"))
        assert isinstance(found, OciError)

    return read


def ask_token_server(challenge: str, answer: bytes) -> Any:
    """What a registry's challenge has a client do, and what the token server gives."""

    async def ask() -> str | None:
        transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=answer))
        async with httpx.AsyncClient(transport=transport) as client:
            registry = Registry.parse("http://r")
            authorizer = Authorizer({}, clock=lambda: 0.0)
            purpose = Purpose(registry, Scope("a/b"), "a/b:v1")
            found = await authorizer.answer_challenge(lambda _url: client, purpose, challenge)
            assert authorizer.cached_header(registry, purpose.scope) == found
            return found

    return asyncio.run(ask())


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.zeros((2, 2), np.float32), y=np.array([0, 1]))
    return file.getvalue()


DECODERS = {
    "update, JSON": Decoder(read_and_check_update(JSON), (InvalidError,), (OUTPUT,)),
    "update, CBOR": Decoder(read_and_check_update(CBOR), (InvalidError,), (TYPED, cbor2.dumps(UPDATE))),
    "update, safetensors": Decoder(read_and_check_update(SAFETENSORS), (InvalidError,), (TENSORS,)),
    "update, zstd": Decoder(
        read_and_check_update(SAFETENSORS, "zstd"), (InvalidError,), (zstandard.compress(TENSORS),)
    ),
    "update, MQTT": Decoder(
        read_message_over_mqtt, (InvalidError,), (OUTPUT, TENSORS, zstandard.compress(OUTPUT))
    ),
    "compression": Decoder(of_text(read_description), (TensorError,), (COMPRESSION,)),
    "output of a program": Decoder(
        lambda data: parse_program_output(data, None, ENV, "p-1"), (TaskError,), (OUTPUT,)
    ),
    "tensors of a program": Decoder(
        lambda data: parse_program_output(OUTPUT, data, ENV, "p-1"), (TaskError,), (TENSORS,)
    ),
    "evaluation": Decoder(
        lambda data: read_evaluation(data, left_tensors=False, round_id="r-1", proplet_id="p-1"),
        (MalformedMessageError,),
        (EVALUATION,),
    ),
    "program that aggregates": Decoder(
        lambda data: read_aggregate(data, {}, BASE),
        (InvalidError,),
        (b'{"model":{"w":[1,2]},"state":{"a":1}}',),
    ),
    "model of a program that aggregates": Decoder(
        lambda data: read_aggregate(b"{}", {"model.safetensors": data, "state.safetensors": data}, BASE),
        (InvalidError,),
        (TENSORS,),
    ),
    "plan": Decoder(read_plan, (InvalidError,), (header_document({"plan": PLAN}),)),
    "plan's text": Decoder(
        of_text(lambda text: read_plan(header_document({"plan": text}))), (InvalidError,), (PLAN.encode(),)
    ),
    "tensors for the aggregator": Decoder(
        lambda data: read_tensors(data, "update"), (InvalidError,), (TENSORS,)
    ),
    "server state": Decoder(read_state_values, (InvalidError,), (header_document({"values": "{}"}), TENSORS)),
    "experiment": Decoder(
        lambda data: ExperimentSpec.decode(decode_object(data)),
        (InvalidError,),
        (b'{"program":"a/b:v1","rounds":2,"strategy":{"name":"fedavg"},"hyperparams":{"lr":0.1}}',),
    ),
    "experiment file": Decoder(of_file(ExperimentFile.load), (StartError,), (EXPERIMENT,)),
    "JSON file": Decoder(of_file(read_json), (StartError,), (b'{"data":[]}',)),
    "policy": Decoder(of_file(Policy.read), (PolicyError,), (POLICY,)),
    "program in a task": Decoder(decode_program, (InvalidError,), (base64.b64encode(b"\0asm\1\0\0\0"),)),
    "manifest": Decoder(lambda data: read_layers(data, "a/b:v1"), (UnsupportedArtifactError,), (MANIFEST,)),
    "index of the registry": Decoder(
        of_file(lambda file: Layout(file.parent), "index.json"), (DamagedLayoutError,), (INDEX,)
    ),
    "refusal of a registry": Decoder(refusal(403), (), (b'{"errors":[{"code":"DENIED","message":"no"}]}',)),
    "challenge of a registry": Decoder(
        of_text(lambda text: [parse_challenges(text), ask_token_server(text, b'{"token":"t"}')]),
        (OciError, httpx.InvalidURL),  # which a connection names
        (
            b'Bearer realm="https://t/token",service="r",scope="repository:a:pull"',
            b'Bearer realm="https://[::1"',
        ),
    ),
    "token server": Decoder(
        lambda data: ask_token_server('Bearer realm="https://t/token",service="r"', data),
        (OciError,),
        (
            b'{"token":"t","expires_in":60}',
            b'{"access_token":"t","expires_in":NaN}',
            b'{"token":"t","expires_in":"-inf"}',
        ),
    ),
    "payload of a signature": Decoder(
        signed_digest,
        (),
        (
            b'{"critical":{"type":"cosign container image signature","image":{"docker-manifest-digest":"sha256:%s"}}}'
            % (b"0" * 64),
        ),
    ),
    "public key": Decoder(
        of_file(lambda file: PublicKey.read(file, "PROXY_SIGNERS")), (StartError,), (PUBLIC_KEY,)
    ),
    "certificate": Decoder(of_file(read_certificate), (StartError,), (CERTIFICATE,)),
    "Docker's logins": Decoder(
        of_file(lambda file: docker_logins(file.parent), "config.json"),
        (),
        (b'{"auths":{"r":{"auth":"dTpw"}}}',),
    ),
    "registries": Decoder(of_text(check_registries), (InvalidError,), (b"ghcr.io,http://r:5000",)),
    "token of a user": Decoder(
        of_text(lambda text: [TOKENS.read(text, "access")]),
        (UnauthenticatedError,),
        (TOKENS.issue(TokenClaims("u", 0, "l", "t"))["access_token"].encode(),),
    ),
    "id and key": Decoder(of_text(_read_basic), (UnauthenticatedError,), (base64.b64encode(b"id:key"),)),
    "token of the broker": Decoder(decode_token, (MalformedClaimsError,), (b"e30.eyJhIjoxfQ.e30",)),
    "broker's address": Decoder(of_text(BrokerAddress.parse), (ValueError,), (b"mqtts://[::1]:8883",)),
    "database's URL": Decoder(of_text(_parse), (StartError,), (b"postgresql://u:p@h:5432/d", b"sqlite:///a")),
    "id of an event": Decoder(of_text(read_last_event_id), (InvalidError,), (b"12",)),
    "audit log": Decoder(
        of_file(lambda file: list(read_lines([file]))), (DamagedError,), (b'{"seq":1,"prev":"","hash":""}\n',)
    ),
    "worker of a simulation": Decoder(
        lambda data: read_message(io.BytesIO(data)), (WorkerError,), (b'{"message":"WorkerReady"}\n',)
    ),
    "data, npz": Decoder(of_file(read_dataset, "data.npz"), (InvalidError,), (npz(),)),
    "data, CSV": Decoder(of_file(read_dataset, "data.csv"), (InvalidError,), (b"a,y\n1,x\n2,y\n",)),
    "data, JSON": Decoder(
        of_file(read_dataset, "data.json"), (InvalidError,), (b'{"data":[{"x":[1,2],"y":0}]}',)
    ),
    "data, IDX": Decoder(
        of_file(lambda file: read_idx(file, 1)), (InvalidError,), (b"\0\0\x08\1\0\0\0\2ab",)
    ),
    "data, IDX in gzip": Decoder(
        of_file(lambda file: read_idx(file, 1), "file.gz"),
        (InvalidError,),
        (gzip.compress(b"\0\0\x08\1\0\0\0\2ab"),),
    ),
    "trace of devices": Decoder(
        of_file(DeviceTrace.read, "t.csv"), (InvalidError,), (b"client,seconds,drops_out\na,1,0\n",)
    ),
    "recorded hours": Decoder(
        of_file(RecordedHours.read, "h.csv"), (InvalidError,), (b"client,begins,ends\na,1,2\n",)
    ),
}

BOMBS = [
    opening * 50_000
    for opening in (b"[", b'{"a":', b'{"update":{"w":', b"a = [", b"\x81", b"\xd8\x28\x82\x80", b"(")
]
"""Documents that are nested without end."""

VALUES = [b"", b"null", b"[]", b"{}", b"0", b'""', b"NaN", b"1e999", b'{"a":NaN}', b'"\\ud800"', b"9" * 5000]


@st.composite
def changed(draw: st.DrawFn, samples: tuple[bytes, ...]) -> bytes:
    """A sample with some bytes exchanged, left out or put in: also whole values of JSON for others."""
    content = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        left_out = draw(st.integers(0, 3))
        put_in = draw(
            st.binary(max_size=3)
            | st.sampled_from([b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"9" * 400])
        )
        content = content[:at] + put_in + content[at + left_out :]
    return content


@st.composite
def other_values(draw: st.DrawFn, samples: tuple[bytes, ...]) -> bytes:
    """A sample that is JSON, with another value somewhere in it; a changed one else."""
    content = draw(st.sampled_from(samples))
    try:
        place = document = json.loads(content)
    except ValueError:
        return draw(changed(samples))
    while isinstance(place, dict) and place:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or draw(st.booleans()):
            place[key] = draw(ANYTHING)
            break
        place = place[key]
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", DECODERS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    decoder = DECODERS[name]

    def try_it(data: bytes) -> None:
        try:
            decoder.read(data)
        except decoder.errors as error:
            str(error).encode()  # it goes into an answer or a log

    for data in (*decoder.samples, *VALUES, *BOMBS):
        try_it(data)
    inputs = st.binary(max_size=200) | changed(decoder.samples) | other_values(decoder.samples)
    settings(suppress_health_check=list(HealthCheck))(given(inputs)(try_it))()


@pytest.mark.parametrize("name", DECODERS)
def test_a_sample_is_read(name: str) -> None:
    """Else the other test would only try the first check."""
    decoder = DECODERS[name]
    if decoder.errors:
        decoder.read(decoder.samples[0])
