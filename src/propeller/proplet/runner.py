"""One task from its start message to its result: program and inputs, the run, the update."""

import base64
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from propeller.process.logs import get_logger
from propeller.proplet.inputs import ENV_BYTES, Given, Inputs
from propeller.proplet.peers import COORDINATOR, MODEL_REGISTRY, Peers
from propeller.proplet.programs import Programs
from propeller.proplet.updates import TENSORS_FILE, Updates, read_update
from propeller.proplet.work import TaskError, together
from propeller.protocol.task import FlEnvelope, TaskResult, TaskStart
from propeller.wasm.job import Job, Limits, Outcome

log = get_logger("task")

DAEMON_WALL_TIME_S = 10 * 365 * 86400.0
"""A daemon runs until it is stopped."""

_LINE = 8192

_FILE_URL = re.compile(r"https?://\S+\.wasm")
"""A file to fetch over HTTP, as H proplets do; an artifact would end in a tag or digest."""

_STAGES = ("prepare_ms", "start_ms", "run_ms", "total_ms", "send_ms")

Execute = Callable[[Job, Callable[[str], None]], Awaitable[Outcome]]
"""Runs a job; ``Sandbox.run``."""


@dataclass(frozen=True)
class Ran:
    """A run that succeeded, and how long what came before it took (milliseconds)."""

    job: Job
    outcome: Outcome
    prepare_ms: float


class Runner:
    """Runs tasks, one call each."""

    def __init__(
        self,
        proplet_id: str,
        peers: Peers,
        programs: Programs,
        inputs: Inputs,
        updates: Updates,
        execute: Execute,
        limits: Limits,
    ) -> None:
        self._proplet_id, self._peers, self._programs = proplet_id, peers, programs
        self._inputs, self._updates, self._execute, self._limits = inputs, updates, execute, limits

    async def prepare(self, start: TaskStart) -> Job:
        """Have everything that the task needs here; program, model and dataset are fetched at the same time.

        Raises:
            TaskError: something cannot be had, or the task is of a kind that does not run here.
        """
        env = {**start.env, "PROPLET_ID": self._proplet_id}
        _check_supported(start)
        for name, value in env.items():
            if not name or "=" in name or "\0" in name + value:
                raise TaskError(
                    f"env: {name[:80]!r} cannot be an environment variable with this name and value"
                )
        federated = bool(env.get("ROUND_ID"))
        if federated:
            self._updates.check(env)
            env.setdefault("FL_MODE", "train")
        for variable in (COORDINATOR, MODEL_REGISTRY):
            if (url := self._peers.url(variable, env)) is not None:
                env[variable] = url
        limits = replace(self._limits, wall_time_s=DAEMON_WALL_TIME_S) if start.daemon else self._limits
        digest: str
        given: Given
        digest, given = await together(self._program(start), self._inputs.fetch(env))
        return Job(
            id=start.id,
            digest=digest,
            env={**env, **given.env},
            args=tuple(start.cli_args),
            files=given.files,
            export=None if federated else start.name,
            inputs=tuple(start.inputs),
            limits=limits.lowered(start.limits),
        )

    async def run(self, start: TaskStart) -> Ran:
        """Prepare a task and run it.

        Raises:
            TaskError: it could not be prepared, or the program failed.
        """
        begin = time.monotonic()
        job = await self.prepare(start)
        prepare_ms = (time.monotonic() - begin) * 1000
        try:
            return Ran(job, await self.execute(job), prepare_ms)
        except TaskError as error:
            raise TaskError(str(error), {"prepare_ms": prepare_ms, **error.usage}) from None

    async def execute(self, job: Job) -> Outcome:
        """Run a prepared task; its standard error goes to the log, a line each.

        Raises:
            TaskError: the program failed; the text ends with the last line of its standard error.
        """
        round_id = job.env.get("ROUND_ID")
        # The lines come from another asyncio task than this one, without its context.
        lines: structlog.typing.FilteringBoundLogger = log.bind(
            task_id=job.id, **({"round_id": round_id} if round_id else {})
        )
        last = ""

        def take(line: str) -> None:
            nonlocal last
            last = line[:_LINE]
            lines.info(last)

        log.info("Executing task", digest=job.digest)
        outcome = await self._execute(job, take)
        if outcome.error is not None:
            raise TaskError(f"{outcome.error}: {last}" if last else outcome.error, outcome.metrics)
        return outcome

    async def report(self, ran: Ran) -> TaskResult:
        """Send what a task's program left where it belongs, and say how the task ended.

        Raises:
            TaskError: it is not an update, or the coordinator refused it.
        """
        task_id, stdout = ran.job.id, ran.outcome.stdout
        if not ran.job.env.get("ROUND_ID"):
            value = ran.outcome.value
            return TaskResult(
                task_id=task_id,
                proplet_id=self._proplet_id,
                results=stdout.decode(errors="replace") if value is None else value,
                usage=usage(ran),
            )
        begin = time.monotonic()
        try:
            update = read_update(
                stdout, ran.outcome.out_files.get(TENSORS_FILE), ran.job.env, self._proplet_id
            )
            begin = time.monotonic()
            await self._updates.send(update, ran.job.env)
        except TaskError as error:
            raise TaskError(str(error), usage(ran, time.monotonic() - begin)) from error
        taken = usage(ran, time.monotonic() - begin)
        log.info("task stages", **{name: taken[name] for name in _STAGES if name in taken})
        envelope = FlEnvelope(
            task_id=task_id,
            round_id=update.header.round_id,
            proplet_id=self._proplet_id,
            num_samples=update.header.num_samples,
            update_b64=base64.b64encode(stdout).decode() if len(stdout) < ENV_BYTES else "",
            format=ran.job.env.get("FL_FORMAT", "f32-delta"),
            metrics=update.header.metrics,
        )
        return TaskResult(
            task_id=task_id,
            proplet_id=self._proplet_id,
            results=envelope.model_dump(mode="json"),
            usage=taken,
        )

    async def _program(self, start: TaskStart) -> str:
        try:
            content = start.program_bytes()
        except ValueError as error:
            raise TaskError(str(error)) from None
        return await (
            self._programs.add(content) if content is not None else self._programs.fetch(start.image_url)
        )


def _check_supported(start: TaskStart) -> None:
    """See that a task asks for nothing that only other proplets do.

    Raises:
        TaskError: it does.
    """
    if start.encrypted:
        raise TaskError("encrypted programs are not supported on this proplet: it has no trusted environment")
    if start.latent:
        raise TaskError(
            "latent tasks are not supported on this proplet: start the task without latent, each time it is to run"
        )
    if _FILE_URL.fullmatch(start.image_url):
        raise TaskError(
            f"image_url {start.image_url!r}: this proplet takes programs from OCI registries, not files over HTTP: push it "
            "there (propeller push) and name it as registry/name:tag, with its tag also if its name ends in .wasm"
        )


def usage(ran: Ran, send_s: float | None = None) -> dict[str, float]:
    """What a task took: milliseconds of each stage and of the processors, bytes, instructions, steps."""
    found = {"prepare_ms": ran.prepare_ms, **ran.outcome.metrics}
    if send_s is not None:
        found["send_ms"] = send_s * 1000
    return {name: round(value, 2) for name, value in found.items()}
