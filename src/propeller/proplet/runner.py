"""One task from its start message to its result: program and inputs, the run, the update."""

import base64
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog

from propeller.process.background import gather_or_cancel
from propeller.process.logs import get_logger
from propeller.proplet.compression import UpdateCompressor
from propeller.proplet.device_states import DeviceStates, TaskState, round_number
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import InputFetcher
from propeller.proplet.large_files import LargeFiles
from propeller.proplet.policy import PolicyFile
from propeller.proplet.programs import ProgramFetcher
from propeller.proplet.settings import LIMIT_SETTINGS
from propeller.proplet.stages import enter
from propeller.proplet.task_room import Resources, TaskRoom
from propeller.proplet.updates import UpdateSender, parse_program_output
from propeller.protocol.evaluations import EVALUATE
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.task import FlEnvelope, Stage, TaskResult, TaskStart
from propeller.wasm.last_words import LastWords
from propeller.wasm.program_run import Limits, ProgramRun, RunOutcome
from propeller.wasm.task_inputs import MAX_ENV_BYTES, TENSORS_FILE, TaskInputs

log = get_logger("task")

DAEMON_WALL_TIME_S = 10 * 365 * 86400.0
"""A daemon runs until it is stopped."""

_MAX_LOG_LINE_CHARS = 8192
"""Of a line of a program's standard error; what is longer is cut in the log."""

_FILE_URL = re.compile(r"https?://\S+\.wasm")
"""A file to fetch over HTTP, as later proplets of absmach/propeller do; an artifact would end in a tag or digest."""

_PREFETCHED = "the program is here and compiled"

_LOGGED_STAGES = ("prepare_ms", "start_ms", "run_ms", "total_ms", "send_ms")

ExecuteProgram = Callable[[ProgramRun, Callable[[str], None]], Awaitable[RunOutcome]]
"""Runs a program, whose standard error goes to the second argument; ``Sandbox.run``."""

MemoryBound = Callable[[str, Limits], int]
"""How many bytes of memory a run of a program may take at most; ``Sandbox.memory_bound``."""


@dataclass(frozen=True)
class CompletedRun:
    """A run that succeeded, and how long what came before it took (milliseconds)."""

    run: ProgramRun
    outcome: RunOutcome
    preparing: Mapping[str, float]

    def usage(self, send_s: float | None = None) -> dict[str, float]:
        """What the task took: milliseconds of each stage and of the processors, bytes, instructions, steps."""
        figures = {**self.preparing, **self.outcome.metrics}
        if send_s is not None:
            figures["send_ms"] = send_s * 1000
        return {name: round(value, 2) for name, value in figures.items()}


class ProgramRunner:
    """Prepares a task, runs its program, and makes a result of what that left."""

    def __init__(
        self,
        proplet_id: str,
        programs: ProgramFetcher,
        inputs: InputFetcher,
        updates: UpdateSender,
        execute: ExecuteProgram,
        limits: Limits,
        states: DeviceStates,
        large: LargeFiles,
        compressor: UpdateCompressor,
        policy: PolicyFile,
        room: TaskRoom,
        memory_bound: MemoryBound,
    ) -> None:
        """``limits`` are the proplet's; its policy and a task may ask for lower ones. ``room`` is what all tasks have."""
        self._proplet_id, self._programs, self._inputs = proplet_id, programs, inputs
        self._updates, self._execute, self._limits, self._states = updates, execute, limits, states
        self._large, self._compressor, self._policy = large, compressor, policy
        self._room, self._memory_bound = room, memory_bound

    def task_folder(self) -> AbstractAsyncContextManager[Path]:
        """A folder for a task's large files, made when there are some, and removed at the end of the block."""
        return self._large.task_folder()

    async def prepare(self, start: TaskStart, folder: Path) -> ProgramRun:
        """Fetch everything that the task needs, and compile its program.

        ``folder`` is the task's for large files.

        Raises:
            TaskError: something cannot be fetched, the device's policy is against it, or the task is of a kind that does not run here.
        """
        run, _compile_ms = await self._prepare(start, folder)
        return run

    async def prefetch(self, start: TaskStart) -> TaskResult:
        """Fetch a task's program and compile it, for tasks that come later.

        Raises:
            TaskError: it cannot be fetched or compiled, or may not run here.
        """
        begin = time.monotonic()
        enter(Stage.FETCHING)
        policy = self._policy.current()
        policy.check_time(datetime.now().astimezone())
        _check_supported(start)
        limits = policy.lowered(self._limits).lowered(start.limits)
        _digest, compile_ms = await self._prepare_program(start, limits)
        took = {"prepare_ms": (time.monotonic() - begin) * 1000, "compile_ms": compile_ms}
        usage = {name: round(value, 2) for name, value in took.items() if value}
        return TaskResult(task_id=start.id, proplet_id=self._proplet_id, results=_PREFETCHED, usage=usage)

    async def _prepare(self, start: TaskStart, folder: Path) -> tuple[ProgramRun, float]:
        """As ``prepare``, with the milliseconds that compiling took; program, model and dataset are fetched at the same time."""
        policy = self._policy.current()
        policy.check_time(datetime.now().astimezone())
        env = {**start.env, "PROPLET_ID": self._proplet_id}
        _check_supported(start)
        for name, value in env.items():
            if not name or "=" in name or "\0" in name + value:
                raise TaskError(
                    f"env: {name[:80]!r} cannot be an environment variable with this name and value"
                )
        federated = bool(env.get("ROUND_ID"))
        if federated:
            self._updates.check_destination(env)
            env.setdefault("FL_MODE", "train")
        limits = replace(self._limits, wall_time_s=DAEMON_WALL_TIME_S) if start.daemon else self._limits
        limits = policy.lowered(limits).lowered(start.limits)
        program: tuple[str, float]
        inputs: TaskInputs
        enter(Stage.FETCHING)
        program, inputs = await gather_or_cancel(
            self._prepare_program(start, limits), self._inputs.fetch(env, folder, start.model)
        )
        digest, compile_ms = program
        run = ProgramRun(
            id=start.id,
            digest=digest,
            env={**env, **inputs.env},
            args=tuple(start.cli_args),
            files=inputs.files,
            export=None if federated else start.name,
            inputs=tuple(start.inputs),
            limits=limits,
            state=await self._state(start, env, digest) if federated and limits.state_bytes else None,
            large_files=folder if federated else None,
            large_bytes=LARGE_BYTES,
        )
        return run, compile_ms

    async def run(self, start: TaskStart, folder: Path) -> CompletedRun:
        """Prepare a task and run it; its large files are in ``folder``, until its end is reported.

        Raises:
            TaskError: it could not be prepared, or the program failed.
        """
        begin = time.monotonic()
        run, compile_ms = await self._prepare(start, folder)
        preparing = {"prepare_ms": (time.monotonic() - begin) * 1000}
        if compile_ms:
            preparing["compile_ms"] = compile_ms
        enter(Stage.WAITING)
        try:
            async with self.room(run):
                enter(Stage.RUNNING)
                return CompletedRun(run, await self.execute(run), preparing)
        except TaskError as error:
            raise TaskError(str(error), {**preparing, **error.usage}) from None

    def room(self, run: ProgramRun, *, daemon: bool = False) -> AbstractAsyncContextManager[None]:
        """Wait for room for a prepared task, which is its until the end of the block; raises TaskError if there will be none."""
        limits = run.limits
        need = Resources(
            self._memory_bound(run.digest, limits),
            limits.out_bytes + (limits.state_bytes if run.state is not None else 0),
            limits.threads,
            limits.descriptors,
        )
        return self._room.taken(need, daemon=daemon)

    async def execute(self, run: ProgramRun) -> RunOutcome:
        """Run a prepared task; its standard error goes to the log, a line each.

        Raises:
            TaskError: the program failed; the text ends with what its standard error says of it.
        """
        round_id = run.env.get("ROUND_ID")
        # The lines come from another asyncio task than this one, without its context.
        lines: structlog.typing.FilteringBoundLogger = log.bind(
            task_id=run.id, **({"round_id": round_id} if round_id else {})
        )
        said = LastWords(_MAX_LOG_LINE_CHARS)

        def log_line(line: str) -> None:
            lines.info(said.add(line))

        log.info("Executing task", digest=run.digest)
        outcome = await self._execute(run, log_line)
        if outcome.error is not None:
            error = f"{outcome.error}{self._named(outcome.limit, run.limits)}"
            raise TaskError(f"{error}: {said.reason}" if said.reason else error, outcome.metrics)
        return outcome

    async def report(self, completed: CompletedRun, *, copy_update: bool) -> TaskResult:
        """Send what a task's program left where it belongs, and say how the task ended.

        ``copy_update``: repeat a small update in the result, as absmach/propeller's managers keep it there.

        Raises:
            TaskError: it is not an update, or the coordinator refused it.
        """
        enter(Stage.SENDING)
        run, outcome = completed.run, completed.outcome
        if not run.env.get("ROUND_ID"):
            value = outcome.value
            return TaskResult(
                task_id=run.id,
                proplet_id=self._proplet_id,
                results=outcome.stdout.decode(errors="replace") if value is None else value,
                usage=completed.usage(),
            )
        begin = time.monotonic()
        state = run.state if isinstance(run.state, TaskState) else None
        try:
            async with self._states.settling(state) if state is not None else contextlib.nullcontext():
                tensors = outcome.large_files.get(TENSORS_FILE) or outcome.out_files.get(TENSORS_FILE)
                update = parse_program_output(outcome.stdout, tensors, run.env, self._proplet_id)
                async with self._compressor.compressed(update, run) as sent:
                    begin = time.monotonic()
                    answered = await self._updates.send(sent, run.env)
                    if not answered:
                        self._states.doubt(run.env.get("EXPERIMENT_ID", ""), update.header.round_id)
                if state is not None:
                    await self._states.commit(state)
        except TaskError as error:
            raise TaskError(str(error), completed.usage(time.monotonic() - begin)) from error
        finally:
            if state is not None:
                await self._states.discard(state)
        usage = completed.usage(time.monotonic() - begin)
        log.info("task stages", **{name: usage[name] for name in _LOGGED_STAGES if name in usage})
        repeated = copy_update and len(outcome.stdout) < MAX_ENV_BYTES
        envelope = FlEnvelope(
            task_id=run.id,
            round_id=update.header.round_id,
            proplet_id=self._proplet_id,
            num_samples=update.header.num_samples,
            update_b64=base64.b64encode(outcome.stdout).decode() if repeated else "",
            format=run.env.get("FL_FORMAT", "f32-delta"),
            metrics=update.header.metrics,
        )
        return TaskResult(
            task_id=run.id,
            proplet_id=self._proplet_id,
            results=envelope.model_dump(mode="json"),
            usage=usage,
        )

    def _named(self, limit: str | None, limits: Limits) -> str:
        """The setting behind a limit that a task went over, in parentheses; of one that the task itself asked for: nothing."""
        if limit not in LIMIT_SETTINGS or getattr(limits, limit) != getattr(self._limits, limit):
            return ""
        return f" ({LIMIT_SETTINGS[limit]})"

    async def _state(self, start: TaskStart, env: Mapping[str, str], digest: str) -> TaskState | None:
        """The device state of a task; only those of experiments have one.

        Raises:
            TaskError: the number of its round is none.
        """
        experiment_id = env.get("EXPERIMENT_ID")
        if not experiment_id:
            return None
        number = round_number(env)
        program = _repository(start.image_url) or digest
        await self._states.wait_settled(experiment_id, program)
        return self._states.open(
            experiment_id,
            program,
            number,
            changes=env.get("FL_MODE") != EVALUATE,
        )

    async def _prepare_program(self, start: TaskStart, limits: Limits) -> tuple[str, float]:
        digest = await self._fetch_program(start)
        enter(Stage.COMPILING)
        # A task may ask for lower limits, but none of compiling: its program is everyone's.
        bounds = replace(self._limits, fuel=limits.fuel)
        compile_ms = await self._programs.compile(start.image_url or "in the task's file", digest, bounds)
        enter(Stage.FETCHING)
        return digest, compile_ms

    async def _fetch_program(self, start: TaskStart) -> str:
        try:
            content = start.program_bytes()
        except ValueError as error:
            raise TaskError(str(error)) from None
        return await (
            self._programs.add(content) if content is not None else self._programs.fetch(start.image_url)
        )


def _repository(image: str) -> str:
    """A reference without tag and digest: all versions of a program see the same device state."""
    folder, slash, name = image.partition("@")[0].rpartition("/")
    return folder + slash + name.partition(":")[0]


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
