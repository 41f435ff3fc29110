"""Resource metrics: a bounded number of each sender, in order."""

from datetime import UTC, datetime

from propeller.manager.metrics_repository import MetricsRepository
from propeller.manager.task import Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.protocol.proplet import PropletMetrics, TaskMetrics
from propeller.store.database import Database


async def test_the_newest_stay(database: Database) -> None:
    metrics = MetricsRepository(database, keep=10)
    for number in range(25):
        for proplet_id in ("a", "b"):
            metrics.add_proplet_metrics(PropletMetrics(proplet_id=proplet_id, namespace=str(number)))
    metrics.add_proplet_metrics(PropletMetrics(proplet_id="c"))
    await metrics.write()
    await metrics.prune()
    for proplet_id in ("a", "b"):
        total, page = await metrics.of_proplet(proplet_id, 2, 3)
        assert total == 10
        assert [one["namespace"] for one in page] == ["17", "18", "19"]
    assert (await metrics.of_proplet("c", 0, 5))[0] == 1
    assert await metrics.of_proplet("unknown", 0, 5) == (0, [])


async def test_metrics_of_unknown_tasks_and_from_another_proplet_are_not_kept(database: Database) -> None:
    task = Task("t", TaskSpec(name="add"), TaskState.RUNNING, datetime.now(UTC), proplet_id="p")
    await TaskRepository(database).add(task)
    metrics = MetricsRepository(database)
    for task_id in ("t", "unknown"):
        metrics.add_task_metrics(TaskMetrics(task_id=task_id, proplet_id="p", metrics={"cpu_percent": 97.0}))
    metrics.add_task_metrics(TaskMetrics(task_id="t", proplet_id="another", metrics={"cpu_percent": 1.0}))
    assert (await metrics.of_task("unknown", 0, 5))[0] == 0
    total, page = await metrics.of_task("t", 0, 5)
    assert total == 1
    assert page[0]["metrics"] == {"cpu_percent": 97.0}
