"""Who reads the next request: the task that worked last, one at a time, and never when there is none."""

from __future__ import annotations

import os

import trio
import trio.testing

from vnafs.fuse.readiness import Readiness


def test_tasks_share_requests_and_none_blocks_on_an_empty_descriptor() -> None:
    reading, writing = os.pipe()
    taken: list[int] = []

    async def task(number: int, readiness: Readiness) -> None:
        while await readiness.wait():
            assert os.read(reading, 1) == b"r"  # would hang here, and the test with it, if there were none
            taken.append(number)

    async def run() -> None:
        readiness = Readiness(reading, 20e-6)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(task, number, readiness)
            await trio.testing.wait_all_tasks_blocked()
            for burst in (1, 1, 1, 1, 5, 1, 40):
                before = len(taken)
                os.write(writing, b"r" * burst)
                while len(taken) < before + burst:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    finally:
        os.close(reading)
        os.close(writing)
    assert len(taken) == 50
    assert len(set(taken)) <= 3  # the others never got a buffer


def test_a_closed_session_ends_every_task() -> None:
    reading, writing = os.pipe()

    async def run() -> None:
        readiness = Readiness(reading, 0)
        ended = []

        async def task() -> None:
            ended.append(await readiness.wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(reading)
        assert ended == [False]

    trio.run(run)
    os.close(reading)
    os.close(writing)
