"""An aggregation by a program: its documents become files, and what it leaves becomes the model."""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path

from propeller.aggregator.aggregation import Answer
from propeller.aggregator.documents import (
    DocumentOrder,
    check_same_model,
    check_update,
    header_document,
    read_tensors,
    write_result,
)
from propeller.aggregator.program_task import MODE, TASK_FILE, cast, read_aggregate, write_task
from propeller.aggregator.spill import SpillSpace, SpillStore
from propeller.errors import InvalidError, UnavailableError, UnprocessableError
from propeller.fl.strategies import NoUpdatesError
from propeller.fl.tensors import Tensors, TensorSpec, to_safetensors
from propeller.fl.tensors.safetensors import PREFIX, Header, header_length, read_header
from propeller.process.files import Buffer
from propeller.program_host.programs import PinnedProgram, ProgramHost
from propeller.protocol.aggregation import AggregationPlan, AggregationResult
from propeller.tensors.safetensors import write_header
from propeller.wasm import folder_contents
from propeller.wasm.program_run import ProgramRun, RunOutcome

_COPIED_BYTES = 1024 * 1024


class ProgramAggregation:
    """An aggregation by a program with ``@aggregate`` (docs/programs.md): one document of a part is in memory at a time."""

    def __init__(
        self, plan: AggregationPlan, program: PinnedProgram, programs: ProgramHost, space: SpillSpace
    ) -> None:
        """Begin; ``program`` is one that ``programs`` has prepared.

        Raises:
            InvalidError: there are no contributions.
        """
        if not plan.contributions:
            raise NoUpdatesError("No updates provided: the plan has no contributions")
        if plan.cut:
            raise InvalidError("plan: cut: a strategy that is a program works on whole tensors")
        self._plan, self._program, self._programs, self._space = plan, program, programs, space
        self._order = DocumentOrder(plan)
        self._came = 0
        self._bases: list[Tensors] = []
        self._parts: list[list[str]] = []
        self._folder = programs.inputs.new()
        self._taken = 0
        self._is_closed = False
        self._done = SpillStore(space)

    @property
    def waiting_bytes(self) -> int:
        """None: each document becomes a file by itself."""
        return 0

    def add(self, document: Buffer) -> None:
        """As ``Aggregation.add``."""
        place, what = self._order.place(self._came), self._order.describe(self._came)
        tensors = read_tensors(document, what)
        source = "state"
        if place.base is not None:
            self._bases = [tensors] if place.base == 0 else [*self._bases, tensors]
            check_same_model(self._bases, what)
            if place.base == 0:
                again = {name for names in self._parts for name in names} & tensors.keys()
                if again:
                    raise InvalidError(f"{what}: {min(again)!r} was in an earlier part")
                self._parts.append(list(tensors))
            source = f"base-{place.base}" if place.base else "model"
        elif place.contribution is not None:
            header = self._plan.contributions[place.contribution]
            base = self._bases[header.base]
            check_update(tensors, {name: array.shape for name, array in base.items()}, what, "the program")
            if header.kind == "delta":
                document = to_safetensors(_weights(base, tensors))
            source = f"update-{place.contribution}"
        if tensors:
            self._write(self._file(source, place.part), document)
        self._came += 1

    async def finish(self) -> Answer:
        """Run the program, and make an answer of what it leaves.

        Raises:
            InvalidError: documents are missing.
            UnprocessableError: the program failed, or what it left is not an aggregate.
        """
        self._order.check_complete(self._came)
        try:
            files = await asyncio.to_thread(self._input_files)
            run = ProgramRun(
                f"aggregate-{uuid.uuid4().hex}",
                self._program.digest,
                env={"ROUND_ID": self._plan.round_id, "FL_MODE": MODE},
                files=files,
            )
            outcome = await self._programs.run(run)
            return await asyncio.to_thread(self._read, outcome)
        except UnprocessableError as error:
            raise UnprocessableError(f"the strategy {self._program.reference} failed: {error}") from None

    def close(self) -> None:
        """As ``Aggregation.close``."""
        self._is_closed = True
        self._let_go()
        self._done.close()

    def _let_go(self) -> None:
        folder_contents.remove(self._folder)
        taken, self._taken = self._taken, 0
        self._space.give_back(taken)

    def _file(self, source: str, part: int) -> Path:
        if self._plan.parts == 1:
            return self._folder / f"{source}.safetensors"
        return self._folder / f"{source}.part-{part}"

    def _write(self, file: Path, document: Buffer) -> None:
        self._space.take(len(document), self._taken)
        self._taken += len(document)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            file.write_bytes(document)
        except OSError as error:
            raise UnavailableError(
                f"the folder {self._folder.parent} for updates cannot be used: {error.strerror}; set AGGREGATOR_CACHE"
            ) from error
        finally:
            if self._is_closed:  # the request was given up while this thread wrote
                self._let_go()

    def _input_files(self) -> dict[str, bytes | Path]:
        """What the program is given."""
        plan = self._plan
        sources = ["model", *(f"base-{number}" for number in range(1, plan.bases))]
        sources += [*(f"update-{number}" for number in range(len(plan.contributions))), "state"]
        files: dict[str, bytes | Path] = {}
        for source in sources:
            whole = self._folder / f"{source}.safetensors"
            if plan.parts > 1:
                parts = [self._file(source, part) for part in range(plan.parts)]
                _join([part for part in parts if part.exists()], whole)
            if whole.exists():
                files[whole.name] = whole
        strategy = plan.strategy if isinstance(plan.strategy, dict) else {}
        params = {name: value for name, value in strategy.items() if name != "program"}
        return {**files, TASK_FILE: write_task(params, plan.values, plan.contributions)}

    def _read(self, outcome: RunOutcome) -> Answer:
        """The answer, from what the program left.

        Raises:
            UnprocessableError: it is not an aggregate.
        """
        header = _read_header(self._folder / "model.safetensors")
        expected = {name: TensorSpec(entry.dtype, entry.shape) for name, entry in header.entries.items()}
        left = read_aggregate(outcome.stdout, outcome.out_files, expected)
        for number, names in enumerate(self._parts):
            self._done.append(to_safetensors({name: left.model[name] for name in names}))
            if left.state:  # all of it in the first part: its names need not be those of the model's tensors
                self._done.append(to_safetensors(left.state) if number == 0 else header_document({}))
        result = AggregationResult(
            values=left.values,
            parts=self._plan.parts,
            state=bool(left.state),
            program=self._program.reference,
        )
        done, self._done = self._done, SpillStore(self._space)
        return Answer(write_result(result), done)


def _weights(base: Tensors, delta: Tensors) -> Tensors:
    """Base and difference together, in the base's dtypes."""
    return {name: cast(base[name] + delta[name], base[name].dtype, name) for name in base}


def _join(parts: Sequence[Path], whole: Path) -> None:
    """Make one document of those of some parts, which go."""
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    places: dict[str, tuple[Path, int, int]] = {}
    for part in parts:
        header = _read_header(part)
        for name, entry in header.entries.items():
            specs[name] = (entry.dtype, entry.shape)
            places[name] = (part, header.start + entry.begin, entry.end - entry.begin)
    if not specs:
        return
    head, order = write_header(specs)
    with whole.open("wb") as target:
        target.write(head)
        for name in order:
            part, start, left = places[name]
            with part.open("rb") as file:
                file.seek(start)
                while left:
                    piece = file.read(min(left, _COPIED_BYTES))
                    target.write(piece)
                    left -= len(piece)
    for part in parts:
        part.unlink()


def _read_header(file: Path) -> Header:
    with file.open("rb") as opened:
        prefix = opened.read(PREFIX)
        return read_header(prefix + opened.read(header_length(prefix)))
