"""The messages as absmach/propeller writes them (S and H), and what it can read of what we write."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.proplet import HeartbeatMessage, PropletMetrics, Registration, TaskMetrics
from propeller.protocol.rounds import Experiment, RoundNext, RoundStart, model_uri, model_version
from propeller.protocol.task import LIMIT_NAMES, WALL_TIME, FlEnvelope, TaskResult, TaskStart, TaskStop
from propeller.protocol.updates import MAX_SAMPLES, UpdateMessage
from propeller.protocol.wire import MalformedMessageError, Message

PROPLET = "3fe95a65-74f1-4ede-bf20-ef565f04cecb"
DIGEST = "sha256:" + "0" * 64
RUST_TIME = {"secs_since_epoch": 1769011931, "nanos_since_epoch": 123456789}
MOMENT = datetime(2026, 1, 21, 16, 12, 11, 123456, tzinfo=UTC)
NUMBERS = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
LABELS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
LIMITS = st.dictionaries(
    st.sampled_from([n for n in LIMIT_NAMES if n != WALL_TIME]), st.integers(1, 2**53 - 1)
)


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    """Experiments that name a program; ``min_updates``, which round starts have no field for, is its default."""
    participants = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    return Experiment(
        experiment_id=draw(LABELS),
        round_id=draw(IDS),
        model_ref=model_uri(draw(st.integers(0, 2**53 - 1))),
        participants=participants,
        hyperparams=draw(
            st.none() | st.dictionaries(LABELS, st.integers() | LABELS | st.booleans(), max_size=3)
        ),
        k_of_n=draw(st.integers(0, len(participants))),
        timeout_s=draw(st.floats(0, 7 * 86400)),
        task_wasm_image=draw(LABELS.filter(bool)),
        limits=draw(st.none() | LIMITS),
    )


def start(**fields: Any) -> TaskStart:
    return TaskStart.decode({"id": "t", "name": "add", "image_url": "ghcr.io/u/add:latest", **fields})


class TestProplet:
    def test_create_of_s_and_h(self) -> None:
        old = Registration.decode(f'{{"proplet_id":"{PROPLET}","namespace":"default"}}')
        assert (old.proplet_id, old.metadata) == (PROPLET, None)
        new = Registration.decode(
            b'{"proplet_id":"3fe9","namespace":"default","metadata":{"tags":["gpu"],"location":"lab",'
            b'"ip":"10.0.0.4","environment":"docker","os":"linux","hostname":"n1","cpu_arch":"x86_64",'
            b'"total_memory_bytes":16776548352,"proplet_version":"0.5.0","wasm_runtime":"wasmtime-internal"}}'
        )
        assert new.metadata is not None
        assert (new.metadata.tags, new.metadata.directed) == (["gpu"], False)
        assert Registration.decode(new.encode()) == new

    def test_alive_and_the_wills(self) -> None:
        alive = HeartbeatMessage.decode(b'{"proplet_id":"3fe9","status":"alive","namespace":"default"}')
        assert alive.is_alive
        assert json.loads(alive.encode()) == {
            "proplet_id": "3fe9",
            "status": "alive",
            "namespace": "default",
        }
        assert not HeartbeatMessage.decode(b'{"status":"offline","proplet_id":"3fe9"}').is_alive

    @pytest.mark.parametrize("timestamp", [RUST_TIME, "2026-01-21T16:12:11.123456789Z"])
    def test_metrics_with_both_timestamps(self, timestamp: Any) -> None:
        read = PropletMetrics.decode(
            {
                "proplet_id": "3fe9",
                "namespace": "default",
                "timestamp": timestamp,
                "cpu_metrics": {"user_seconds": 1.2, "system_seconds": 0.3, "percent": 4.5},
                "memory_metrics": {"rss_bytes": 30015488, "container_usage_bytes": 41234432},
            }
        )
        assert read.timestamp == MOMENT
        assert read.memory_metrics.container_usage_bytes == 41234432
        written = json.loads(read.encode())
        assert written["timestamp"] == "2026-01-21T16:12:11.123456Z"  # Go reads RFC 3339 alone
        assert set(written["memory_metrics"]) >= {"heap_alloc_bytes", "heap_sys_bytes", "heap_inuse_bytes"}

    def test_metrics_that_are_null_are_empty(self) -> None:
        read = PropletMetrics.decode(b'{"proplet_id":"p","cpu_metrics":null,"memory_metrics":null}')
        assert read.cpu_metrics.percent == read.memory_metrics.rss_bytes == 0

    def test_task_metrics(self) -> None:
        read = TaskMetrics.decode(
            {
                "task_id": "5c1e",
                "proplet_id": "3fe9",
                "metrics": {"cpu_percent": 97.0, "memory_bytes": 40265318400},
                "aggregated": {"avg_cpu_usage": 97.0, "sample_count": 1},
                "timestamp": RUST_TIME,
            }
        )
        assert read.metrics["cpu_percent"] == 97.0
        assert TaskMetrics.decode(read.encode()) == read
        assert TaskMetrics.decode(b'{"task_id":"t","proplet_id":"p","metrics":null}').metrics == {}


class TestStart:
    S = (
        b'{"cli_args":null,"daemon":false,"env":{"HYPERPARAMS":"{\\"batch_size\\":16,\\"epochs\\":1,\\"lr\\":0.01}",'
        b'"MODEL_URI":"fl/models/global_model_v0","ROUND_ID":"r-1"},"file":null,"id":"5c1e",'
        b'"image_url":"ghcr.io/u/fl-client-wasm:latest","inputs":null,"monitoring_profile":null,'
        b'"name":"fl-round-r-1-3fe9","proplet_id":"3fe9","state":0}'
    )
    H = (
        b'{"id":"5c1e","name":"add","state":0,"image_url":"docker.io/u/add:latest","inputs":["3","5"],'
        b'"cli_args":null,"broadcast":false,"daemon":false,"latent":false,"encrypted":false,"proplet_id":"3fe9"}'
    )

    def test_s(self) -> None:
        read = TaskStart.decode(self.S)
        assert json.loads(read.env["HYPERPARAMS"])["batch_size"] == 16
        assert (read.inputs, read.cli_args, read.file, read.proplet_id) == ([], [], None, "3fe9")

    def test_h(self) -> None:
        read = TaskStart.decode(self.H)
        assert (read.inputs, read.broadcast, read.env) == (["3", "5"], False, {})

    def test_inputs_are_numbers_or_strings(self) -> None:
        assert start(inputs=[3, "5", 1.5, -2]).inputs == ["3", "5", "1.5", "-2"]
        with pytest.raises(MalformedMessageError, match=r"inputs\.0"):
            start(inputs=[True])

    def test_nulls_of_go_are_read(self) -> None:
        names = (
            "inputs cli_args env daemon encrypted state kbs_resource_path monitoring_profile proplet_id file"
        )
        assert start(**dict.fromkeys(names.split())) == start()

    def test_a_program_is_named_or_carried(self) -> None:
        with pytest.raises(MalformedMessageError, match="one of image_url and file"):
            start(image_url="")
        assert start(image_url=None, file="AGFzbQ==").program_bytes() == b"\0asm"
        assert start().program_bytes() is None
        with pytest.raises(ValueError, match="file: not valid base64"):
            start(file="@@").program_bytes()

    @given(
        inputs=st.lists(st.integers(0, 2**64 - 1)),
        args=st.lists(st.text()),
        env=st.dictionaries(st.text(), st.text()),
        proplet=st.none() | st.just("3fe9"),
        daemon=st.booleans(),
    )
    def test_an_s_proplet_reads_what_is_written(
        self, inputs: list[int], args: list[str], env: dict[str, str], proplet: str | None, daemon: bool
    ) -> None:
        written = start(inputs=inputs, cli_args=args, env=env, proplet_id=proplet, daemon=daemon)
        fields = json.loads(written.encode())
        # StartRequest of S: null is an error for these, inputs are u64, the rest may be null.
        assert type(fields["id"]) is type(fields["name"]) is str
        assert type(fields["state"]) is int
        assert type(fields["daemon"]) is type(fields["encrypted"]) is bool
        assert (fields["inputs"] or []) == inputs
        assert (fields["cli_args"] or []) == args
        assert (fields["env"] or {}) == env
        assert TaskStart.decode(written.encode()) == written

    @given(NUMBERS)
    def test_numbers_stay_numbers(self, number: float) -> None:
        assert json.loads(start(inputs=[number]).encode())["inputs"] == [number]

    @pytest.mark.parametrize(
        "text", ["nan", "inf", "1e999", "1_0", " 1", "007", "0x1", "", "a", "+1", "\u0661"]
    )
    def test_other_texts_stay_texts(self, text: str) -> None:
        assert json.loads(start(inputs=[text]).encode())["inputs"] == [text]

    def test_inputs_as_h_proplets_read_them(self) -> None:
        assert json.loads(start(inputs=[3, "5"]).encode(text_inputs=True))["inputs"] == ["3", "5"]

    @pytest.mark.parametrize("bad", ["", "../../etc/passwd", "a/b", "a b", "x" * 200])
    def test_an_id_that_is_a_path_is_refused(self, bad: str) -> None:
        with pytest.raises(MalformedMessageError, match="id: "):
            start(id=bad)


class TestStopAndResults:
    @pytest.mark.parametrize(
        "text",
        [
            '{"id":"5c1e","proplet_id":"3fe9"}',
            '{"id":"5c1e","broadcast":false,"proplet_id":"3fe9"}',
            '{"id":"5c1e","broadcast":true}',
            '{"id":"5c1e","proplet_id":null,"broadcast":null}',
        ],
    )
    def test_stop(self, text: str) -> None:
        read = TaskStop.decode(text)
        assert read.id == "5c1e"
        assert TaskStop.decode(read.encode()) == read

    def test_results_as_text(self) -> None:
        read = TaskResult.decode(b'{"task_id":"5c1e","proplet_id":"3fe9","results":"8","error":null}')
        assert (read.results, read.failed, read.sender) == ("8", False, "3fe9")
        assert json.loads(read.encode()) == {
            "task_id": "5c1e",
            "proplet_id": "3fe9",
            "results": "8",
            "error": None,
        }

    def test_results_of_a_federated_task(self) -> None:
        envelope = {
            "task_id": "5c1e", "round_id": "r-1", "proplet_id": "3fe9", "num_samples": 1,
            "update_b64": "eyJyb3VuZF9pZCI6", "format": "f32-delta", "metrics": {},
        }  # fmt: skip
        read = TaskResult.decode({"task_id": "5c1e", "results": envelope, "error": None})
        assert (read.proplet_id, read.sender) == (None, "3fe9")
        assert FlEnvelope.decode(read.results).model_dump() == envelope

    def test_failures(self) -> None:
        assert TaskResult.decode(b'{"task_id":"t","results":"","error":"no memory"}').failed
        assert not TaskResult.decode(b'{"task_id":"t","results":"","error":""}').failed
        assert TaskResult.decode(b'{"task_id":"t","results":{"proplet_id":3}}').sender is None


class TestRegistry:
    def test_requests(self) -> None:
        assert json.loads(ProgramRequest(app_name="ghcr.io/u/x:latest").encode()) == {
            "app_name": "ghcr.io/u/x:latest"
        }
        ours = ProgramRequest(app_name="x", proplet_id="p", digest=DIGEST, missing=[0, 3])
        assert ProgramRequest.decode(ours.encode()) == ours
        for wrong in ({"digest": "sha256:x"}, {"missing": [-1]}, {"proplet_id": "#"}, {"app_name": ""}):
            with pytest.raises(MalformedMessageError, match=next(iter(wrong))):
                ProgramRequest.decode({"app_name": "x", **wrong})

    def test_resolved(self) -> None:
        found = ResolvedProgram(app_name="x", digest=DIGEST, size=4, total_chunks=1)
        assert ResolvedProgram.decode(found.encode()) == found

    def test_chunk_of_s(self) -> None:
        read = ProgramChunk.decode(
            b'{"app_name":"ghcr.io/u/x:latest","chunk_idx":0,"total_chunks":7,"data":"AGFzbQEAAAA="}'
        )
        assert read.payload() == b"\0asm\x01\0\0\0"

    @given(st.binary(min_size=1))
    def test_an_s_proplet_reads_a_chunk(self, part: bytes) -> None:
        chunk = ProgramChunk(
            app_name="x", chunk_idx=1, total_chunks=2, data=base64.b64encode(part).decode(), digest=DIGEST
        )
        fields = json.loads(chunk.encode())
        assert base64.b64decode(fields["data"], validate=True) == part
        assert (fields["chunk_idx"], fields["total_chunks"]) == (1, 2)
        assert ProgramChunk.decode(chunk.encode()).payload() == part

    def test_an_s_proplet_drops_an_error_instead_of_counting_it(self) -> None:
        failed = ProgramChunk(app_name="x", error="no such image")
        assert json.loads(failed.encode()) == {"app_name": "x", "error": "no such image"}
        assert ProgramChunk.decode(failed.encode()) == failed

    @pytest.mark.parametrize(
        "fields",
        [{}, {"data": "AA=="}, {"data": "AA==", "chunk_idx": 1, "total_chunks": 1}, {"total_chunks": 1},
         {"data": "AA==", "chunk_idx": -1, "total_chunks": 1}],
    )  # fmt: skip
    def test_a_part_that_cannot_be_placed_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(MalformedMessageError, match="chunk_idx"):
            ProgramChunk.decode({"app_name": "x", **fields})

    def test_data_that_is_not_base64(self) -> None:
        with pytest.raises(ValueError, match="data: not valid base64"):
            ProgramChunk(app_name="x", total_chunks=1, data="@@").payload()


class TestRounds:
    START = (
        b'{"round_id":"r-1","model_uri":"fl/models/global_model_v0","task_wasm_image":"ghcr.io/u/fl:latest",'
        b'"participants":["3fe9","1f07"],"hyperparams":{"epochs":1,"lr":0.01,"batch_size":16}}'
    )

    def test_round_start(self) -> None:
        read = RoundStart.decode(self.START)
        assert (read.k_of_n, read.timeout_s, read.participants) == (None, None, ["3fe9", "1f07"])
        assert RoundStart.decode(read.encode()) == read

    def test_round_start_of_the_readme_also_sets_the_quorum(self) -> None:
        fields = {**json.loads(self.START), "k_of_n": 2, "timeout_s": 30, "hyperparams": None}
        read = RoundStart.decode(fields)
        assert (read.k_of_n, read.timeout_s, read.hyperparams) == (2, 30, None)

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"round_id": "../r"}, "round_id: "),
            ({"model_uri": ""}, "model_uri: "),
            ({"model_uri": "v" + "9" * 20}, "model_uri: its version is more than"),
            ({"participants": []}, "participants: "),
            ({"participants": None}, "participants: "),
            ({"participants": ["a", "a"]}, "participants: named twice: a"),
            ({"participants": ["a", "+"]}, r"participants\.1: '\+' is not a valid id"),
            ({"k_of_n": 3}, r"k_of_n \(3\) is more than the 2 participants"),
            ({"k_of_n": -1}, "k_of_n: "),
            ({"timeout_s": -1}, "timeout_s: "),
            ({"timeout_s": 1e9}, "timeout_s: "),
        ],
    )
    def test_starts_that_cannot_be_run(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(MalformedMessageError, match=says):
            RoundStart.decode({**json.loads(self.START), **fields})

    def test_an_experiment_and_its_defaults(self) -> None:
        guide = {
            "experiment_id": "e", "round_id": "r-1", "model_ref": "fl/models/global_model_v0", "k_of_n": 3,
            "participants": ["a", "b", "c"], "hyperparams": {"epochs": 1}, "timeout_s": 60,
            "task_wasm_image": "localhost:5000/fl:latest",
        }  # fmt: skip
        assert Experiment.decode(guide).model_dump(exclude={"min_updates"}, exclude_none=True) == guide
        least = Experiment.decode({"round_id": "r", "participants": ["a", "b"], "k_of_n": 0, "model_ref": ""})
        assert (least.k_of_n, least.timeout_s, least.model_ref) == (2, 60, "fl/models/global_model_v0")
        nulls = {
            "experiment_id": None,
            "model_ref": None,
            "k_of_n": None,
            "timeout_s": None,
            "hyperparams": None,
        }
        assert Experiment.decode({"round_id": "r", "participants": ["a", "b"], **nulls}) == least

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"k_of_n": 4}, "k_of_n .4. is more than the 3 participants"),
            ({"k_of_n": 2, "min_updates": 3}, "min_updates .3. is more than k_of_n .2."),
            ({"k_of_n": "many"}, "k_of_n: "),
            ({"min_updates": 0}, "min_updates: "),
            ({"round_id": None}, "round_id: "),
            ({"hyperparams": []}, "hyperparams: "),
        ],
    )
    def test_experiments_that_cannot_be_run(self, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(MalformedMessageError, match=says):
            Experiment.decode({"round_id": "r", "participants": ["a", "b", "c"], **fields})

    @given(experiments())
    def test_an_experiment_becomes_a_round_start_and_back(self, experiment: Experiment) -> None:
        start = experiment.to_round_start()
        assert start.to_experiment() == experiment
        assert start.to_experiment().to_round_start() == start
        assert RoundStart.decode(start.encode()).to_experiment() == experiment
        assert Experiment.decode(experiment.to_json()) == experiment

    @given(
        experiments(),
        st.sets(st.sampled_from(["k_of_n", "timeout_s", "hyperparams", "limits", "experiment_id"])),
    )
    def test_what_a_round_start_leaves_out_is_filled_in_once(
        self, experiment: Experiment, left_out: set[str]
    ) -> None:
        start = RoundStart.model_validate(experiment.to_round_start().model_dump(exclude=left_out))
        assert not left_out & set(start.given())
        filled_in = start.to_experiment()
        assert filled_in.to_round_start().to_experiment() == filled_in
        said = start.given()
        assert {name: getattr(filled_in, name) for name in said} == said

    def test_coordinators_in_go_read_whole_seconds_as_integers(self) -> None:
        fields = {"round_id": "r", "participants": ["a"], "timeout_s": 60.0}
        assert json.dumps(Experiment.decode(fields).to_json()["timeout_s"]) == "60"
        assert Experiment.decode({**fields, "timeout_s": 0.5}).to_json()["timeout_s"] == 0.5
        assert "limits" not in Experiment.decode(fields).to_json()

    def test_ten_thousand_participants_are_read_at_once(self) -> None:
        many = [f"p-{number}" for number in range(10_000)]
        assert len(Experiment.decode({"round_id": "r", "participants": many}).participants) == 10_000

    def test_an_update_of_the_client(self) -> None:
        update = {
            "base_model_uri": "fl/models/global_model_v0", "metrics": {"loss": 0.5}, "num_samples": 64,
            "proplet_id": "3fe9", "round_id": "r-1", "update": {"w": [0.1, 0.2, 0.3], "b": 0.5},
        }  # fmt: skip
        read = UpdateMessage.decode({**update, "received_at": "2026-01-21T16:12:11Z"})
        assert read.model_dump(exclude_unset=True) == update
        assert type(json.loads(read.encode())["num_samples"]) is int

    @pytest.mark.parametrize("samples", [0, -1, 1.0, 1.5, "64", True, None, MAX_SAMPLES + 1, 10**30])
    def test_num_samples_is_a_positive_integer(self, samples: Any) -> None:
        with pytest.raises(MalformedMessageError, match="num_samples: "):
            UpdateMessage.decode(
                {"round_id": "r", "proplet_id": "p", "num_samples": samples, "update": {"w": [1]}}
            )

    @pytest.mark.parametrize("update", [None, {}, [], "x"])
    def test_an_update_holds_something(self, update: Any) -> None:
        with pytest.raises(MalformedMessageError, match="update: "):
            UpdateMessage.decode({"round_id": "r", "proplet_id": "p", "num_samples": 1, "update": update})

    def test_the_notice_of_a_round(self) -> None:
        read = RoundNext.decode(
            b'{"round_id":"r-1","new_model_version":1,"model_uri":"fl/models/global_model_v1",'
            b'"status":"complete","next_round_available":true,"timestamp":"2026-01-21T16:12:11Z"}'
        )
        assert read.timestamp == MOMENT.replace(microsecond=0)
        assert RoundNext.decode(read.encode()) == read

    @given(st.integers(0, MAX_SAMPLES))
    def test_a_version_goes_into_a_reference_and_out(self, version: int) -> None:
        assert model_version(model_uri(version)) == version

    @pytest.mark.parametrize(
        ("ref", "version"), [("", 0), ("a", 0), ("v12", 12), ("v1/m2x", 2), ("v\u0663", 0)]
    )
    def test_versions_as_s_reads_them(self, ref: str, version: int) -> None:
        assert model_version(ref) == version


@pytest.mark.parametrize(
    "message", [Registration, HeartbeatMessage, TaskStop, TaskResult, UpdateMessage, TaskMetrics]
)
@pytest.mark.parametrize("bad", ["../p", "a/b", "#", "+", "", "p\n", 3, None])
def test_ids_with_a_meaning_are_refused_everywhere(message: type[Message], bad: Any) -> None:
    name = next(n for n in ("id", "task_id", "round_id", "proplet_id") if n in message.model_fields)
    with pytest.raises(MalformedMessageError, match=f"{name}: "):
        message.decode({name: bad})
