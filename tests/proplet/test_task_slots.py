"""Which of the tasks that wait for a place is next."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from propeller.proplet.task_slots import TaskSlots


@given(st.lists(st.integers(0, 100), max_size=20), st.sets(st.integers(0, 19)), st.integers(1, 3))
async def test_the_highest_priority_is_next_and_of_equals_the_first(
    priorities: list[int], cancelled: set[int], count: int
) -> None:
    slots, order, running = TaskSlots(count), list[int](), 0
    hold = asyncio.Event()

    async def keep() -> None:
        async with slots.taken(50):
            await hold.wait()

    async def run(number: int) -> None:
        nonlocal running
        async with slots.taken(priorities[number]):
            running += 1
            assert running <= count
            order.append(number)
            await asyncio.sleep(0)
            running -= 1

    kept = [asyncio.create_task(keep()) for _ in range(count)]
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(run(number)) for number in range(len(priorities))]
    await asyncio.sleep(0)
    assert order == []
    gone = {number for number in cancelled if number < len(tasks)}
    for number in gone:
        tasks[number].cancel()
    hold.set()
    await asyncio.gather(*kept, *tasks, return_exceptions=True)
    left = [number for number in range(len(priorities)) if number not in gone]
    assert order == sorted(left, key=lambda number: (-priorities[number], number))
    async with asyncio.timeout(5):  # no place was lost
        await asyncio.gather(*(slots.taken(1).__aenter__() for _ in range(count)))
