"""Who shares a pass with whom; what runs is of no matter here."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape


class Recorder:
    """Stands for a drafter: holds its first pass until it is let go, and notes all of them."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.started, self.go_on = threading.Event(), threading.Event()

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        self.calls.append([one.frontier[0] for one in passes])
        self.started.set()
        assert self.go_on.wait(60)
        return [one.frontier[0] < 10 for one in passes]

    def finish(self, speculation: Speculation) -> None:
        self.calls.append("finish")


def speculation() -> Speculation:
    return Speculation([1], 9, TreeShape(1, 1, 1, 1), Proactive.OFF, Noise(), 100)


async def many(batcher: Batcher, node: int, passes: int) -> list[bool]:
    return [await batcher.run(speculation(), [node]) for _ in range(passes)]


async def until_first_pass(recorder: Recorder) -> None:
    await asyncio.get_running_loop().run_in_executor(None, recorder.started.wait, 60)


def test_a_latecomer_joins_those_who_come_again() -> None:
    recorder = Recorder()

    async def scenario() -> list[list[bool]]:
        batcher = Batcher(recorder)
        early = [asyncio.ensure_future(many(batcher, node, 3)) for node in (0, 1, 11)]
        await until_first_pass(recorder)
        late = asyncio.ensure_future(many(batcher, 2, 3))
        await asyncio.sleep(0)
        recorder.go_on.set()
        results = await asyncio.gather(*early, late)
        await batcher.close()
        return results

    results = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert results == [[True] * 3, [True] * 3, [False] * 3, [True] * 3]
    assert [sorted(call) for call in recorder.calls] == [
        [0, 1, 11],
        [0, 1, 2, 11],
        [0, 1, 2, 11],
        [2],
    ]


def test_who_gives_up_is_left_out_and_finished_after_its_pass() -> None:
    recorder = Recorder()

    async def scenario() -> None:
        batcher = Batcher(recorder)
        running = asyncio.ensure_future(batcher.run(speculation(), [0]))
        await until_first_pass(recorder)
        waiting = [asyncio.ensure_future(batcher.run(speculation(), [node])) for node in (1, 2)]
        await asyncio.sleep(0)
        running.cancel()
        waiting[0].cancel()
        batcher.finish(speculation())
        recorder.go_on.set()
        assert await waiting[1] is True
        await batcher.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    assert recorder.calls == [[0], "finish", [2]]


@pytest.mark.parametrize("given", [None, [], [True, True, True], (True, True)])
def test_a_drafter_that_does_not_answer_each_pass_keeps_nobody_waiting(given: object) -> None:
    class Forgetful(Recorder):
        def run(self, passes: Sequence[Pass]) -> list[bool]:
            return given  # type: ignore[return-value]

    async def scenario() -> list[bool | BaseException]:
        batcher = Batcher(Forgetful())
        two = (batcher.run(speculation(), [node]) for node in (0, 1))
        told = await asyncio.gather(*two, return_exceptions=True)
        await batcher.close()
        return told

    for error in asyncio.run(asyncio.wait_for(scenario(), 60)):
        with pytest.raises(ValueError, match="expected 2 times True or False"):
            raise error
