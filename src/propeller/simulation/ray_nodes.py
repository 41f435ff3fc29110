"""Runs clients' tasks on the nodes of a Ray cluster, with the same result as on this machine.

Each node has an actor with worker processes, given once what all clients have in common. What a client keeps between rounds comes back with
its report and goes along with its next task, so that it does not matter which node runs that, or whether the last one is still there.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from cachetools import LRUCache

from propeller.errors import InvalidError, StartError, UnavailableError
from propeller.simulation.client_data import ClientData
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask, WorkerError
from propeller.simulation.programs import Program
from propeller.simulation.ray_cluster import RayCluster, RayNode
from propeller.simulation.ray_node import Kept, NodeWorkers, read_folder, versions, write_folder
from propeller.simulation.workers import together
from propeller.wasm.program_run import MIB, Limits

_START_S = 60.0
"""How long nodes may take to give us processors, and to start a process there."""

_CLOSE_S = 5.0
_RESTARTS = 3
"""How often an actor is started again on a node that is there."""

_GIVEN_FILES = 4
"""Models and server states of rounds that are kept in the cluster's memory."""

_TOGETHER_BYTES = 64 * MIB
"""Of updates that a node sends at once."""


@dataclass(frozen=True)
class NodePlan:
    """What every node is given at the start."""

    program: Program
    data: ClientData
    central: ClientData | None
    limits: Limits


@dataclass(eq=False)
class _Node:
    """A node that we use; ``running`` are the calls of its actor: a batch each, or ``None`` while it is prepared."""

    node: RayNode
    workers: int
    actor: Any
    restarts: int = 0
    is_ready: bool = False


@dataclass(frozen=True)
class _Batch:
    """Tasks that a node is given together."""

    round_task: RoundTask
    tasks: Sequence[ClientTask]


class RayNodes:
    """The nodes of a cluster as a ``ClientRunner``. Use with ``with``."""

    def __init__(
        self,
        cluster: RayCluster,
        plan: NodePlan,
        folder: Path,
        workers: int | None,
        notify: Callable[[str], None],
    ) -> None:
        """Start nothing yet.

        Args:
            cluster: where.
            plan: what all nodes are given.
            folder: takes what clients keep between rounds.
            workers: processes in all; default: one for each processor of the cluster.
            notify: called with what a person should know.
        """
        self._cluster, self._ray, self._plan, self._notify = cluster, cluster.ray, plan, notify
        self._workers = workers
        self._states = folder / "states"
        self._states.mkdir()
        self._nodes: list[_Node] = []
        self._calls: dict[Any, tuple[_Node, _Batch | None]] = {}
        self._given: LRUCache[str, Any] = LRUCache(_GIVEN_FILES)
        self._setup: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        shares = share_workers(self._cluster.nodes(), self._workers)
        put = self._ray.put
        plan = self._plan
        self._setup = (put(plan.program), put(plan.data), put(plan.central), vars(plan.limits))
        try:
            self._nodes = [_Node(node, count, self._actor(node, count)) for node, count in shares]
            self._check_nodes()
            for node in self._nodes:
                if not node.restarts:
                    self._prepare(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and what they run."""
        nodes, self._nodes = self._nodes, []
        closing = [node.actor.close.remote() for node in nodes if node.is_ready]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for node in nodes:
            self._ray.kill(node.actor)
        self._calls = {}

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Iterator[tuple[ClientReport, bytes]]:
        """As ``ClientRunner.run``; tasks of a node that is lost are run by others.

        Raises:
            WorkerError: no node is left, or one cannot do its work; the text names it.
        """
        size = together(len(tasks), sum(node.workers for node in self._nodes))
        model_bytes = Path(round_task.model).stat().st_size
        size = max(1, min(size, _TOGETHER_BYTES // max(1, model_bytes)))
        todo = deque(_Batch(round_task, tasks[at : at + size]) for at in range(0, len(tasks), size))
        clients = {task.id: task.client for task in tasks}
        left = len(tasks)
        while left:
            self._hand_out(todo)
            done, _waiting = self._ray.wait(list(self._calls), num_returns=1)
            for call in done:
                if call not in self._calls:  # of a node that was lost meanwhile
                    continue
                node, batch = self._calls.pop(call)
                try:
                    found = self._ray.get(call)
                except self._ray.exceptions.RayTaskError as error:
                    raise WorkerError(f"ray: the node {node.node.address}: {_said(error)}") from None
                except self._ray.exceptions.RayError as error:
                    todo.extendleft([] if batch is None else [batch])
                    todo.extendleft(self._lose(node, error, batch))
                    continue
                if batch is None:
                    node.is_ready = True
                    continue
                left -= len(found)
                for report, update, kept in found:
                    yield self._keep(report, clients[report.id], kept), update

    # Nodes -----------------------------------------------------------------------------------------------------

    def _actor(self, node: RayNode, count: int) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": count,
            "max_concurrency": count
            + 3,  # one call waits for a worker, so that none waits for us; and the two others
            "max_restarts": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
        }
        return self._ray.remote(**options)(NodeWorkers).remote()

    def _check_nodes(self) -> None:
        """See that all nodes have what makes the result the same.

        Raises:
            StartError: one has not.
            UnavailableError: one has no processors free.
        """
        wanted = versions()
        calls = {node.actor.versions.remote(): node for node in self._nodes}
        done, waiting = self._ray.wait(list(calls), num_returns=len(calls), timeout=_START_S)
        for call in waiting:
            node = calls[call]
            raise UnavailableError(
                f"ray: the node {node.node.address} has not started {node.workers} workers within {_START_S:g} s: wait until what else "
                "runs there leaves it processors, or ask for less with workers"
            )
        for call in done:
            address = calls[call].node.address
            try:
                found = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                is_task = isinstance(error, self._ray.exceptions.RayTaskError)
                if not is_task and not getattr(error, "actor_init_failed", False):  # it has just gone
                    self._lose(calls[call], error, None)
                    continue
                raise StartError(
                    f"ray: the node {address} cannot run clients: {_said(error)}; each node needs Propeller {wanted['propeller']} "
                    "(pip install 'propeller[ray]')"
                ) from None
            for name, version in wanted.items():
                if found.get(name) != version:
                    raise StartError(
                        f"ray: the node {address} has {name} {found.get(name)}, and here it is {version}: the result would not be the "
                        "same; install the same there, or take the node out of the cluster"
                    )

    def _prepare(self, node: _Node) -> None:
        self._calls[node.actor.prepare.remote(*self._setup, node.workers)] = node, None

    def _lose(self, node: _Node, error: Exception, first: _Batch | None) -> list[_Batch]:
        """Take note that a node's actor is gone, and start another one there if the node is; the batches that it had."""
        mine = {call: batch for call, (who, batch) in self._calls.items() if who is node}
        for call in mine:
            del self._calls[call]
        batches = [batch for batch in mine.values() if batch is not None]
        count = sum(len(batch.tasks) for batch in (*batches, *([] if first is None else [first])))
        self._nodes.remove(node)
        self._ray.kill(node.actor)
        is_there = any(each.id == node.node.id for each in self._cluster.nodes())
        again = is_there and node.restarts < _RESTARTS
        if again:
            new = _Node(node.node, node.workers, self._actor(node.node, node.workers), node.restarts + 1)
            self._nodes.append(new)
            self._prepare(new)
        if count or not again:
            then = "" if again else "; the node is used no more"
            self._notify(
                f"ray: the workers of the node {node.node.address} are lost ({type(error).__name__}): their {count} tasks are run "
                f"again{then}"
            )
        if not self._nodes:
            raise WorkerError(
                f"ray: no node of the cluster at {self._cluster.address} is left ({type(error).__name__})"
            )
        return batches

    # Tasks -----------------------------------------------------------------------------------------------------

    def _hand_out(self, todo: deque[_Batch]) -> None:
        """Give nodes what there is to do: one batch more than each has workers."""
        for node in self._nodes:
            busy = sum(who is node for who, _batch in self._calls.values())
            while node.is_ready and todo and busy <= node.workers:
                batch = todo.popleft()
                self._calls[self._call(node, batch)] = node, batch
                busy += 1

    def _call(self, node: _Node, batch: _Batch) -> Any:
        task = batch.round_task
        strategy = None if task.strategy is None else self._file(task.strategy)
        kept = {each.id: _kept_before(each) for each in batch.tasks if each.state or each.residual}
        tasks = [replace(each, state=None, residual=None) for each in batch.tasks]
        return node.actor.run.remote(task, tasks, kept, self._file(task.model), strategy)

    def _file(self, name: str) -> Any:
        """A round's file in the cluster's memory, where each node finds it once."""
        if name not in self._given:
            self._given[name] = self._ray.put(np.fromfile(name, np.uint8))
        return self._given[name]

    def _keep(self, report: ClientReport, client: int | None, kept: Kept) -> ClientReport:
        """Put what a client keeps now into files here, as workers of this machine leave it."""
        name = f"{client}-{report.id}"
        if kept.state is not None:
            write_folder(self._states / name, kept.state)
            report = replace(report, kept=str(self._states / name))
        if kept.residual is not None:
            file = self._states / f"{name}.residual"
            file.write_bytes(kept.residual)
            report = replace(report, residual=str(file))
        return report


def share_workers(nodes: Sequence[RayNode], workers: int | None) -> list[tuple[RayNode, int]]:
    """How many workers each node has: evenly, and at most one a processor.

    Args:
        nodes: of the cluster.
        workers: how many there are in all; ``None``: one for each processor.

    Raises:
        InvalidError: there are not so many processors.
    """
    total = sum(node.processors for node in nodes)
    if workers is None:
        workers = total
    if not total or workers > total:
        raise InvalidError(
            f"workers: {max(workers, 1)}, but the Ray cluster has {total} processors: ask for less, or add nodes"
        )
    counts = [0] * len(nodes)
    while workers:
        for at, node in enumerate(nodes):
            if workers and counts[at] < node.processors:
                counts[at] += 1
                workers -= 1
    return [(node, count) for node, count in zip(nodes, counts, strict=True) if count]


def _kept_before(task: ClientTask) -> Kept:
    return Kept(
        None if task.state is None else read_folder(Path(task.state)),
        None if task.residual is None else Path(task.residual).read_bytes(),
    )


def _said(error: Exception) -> str:
    """What Ray says of an error, without the stack of the process on the node."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(cause).__name__
