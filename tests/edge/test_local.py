"""An edge in its server's event loop, without HTTP: its texts and its limits."""

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from runtime.edge.local import LocalEdge
from runtime.edge.net.link import Credentials, Link, ServerError
from runtime.sampling import Sampling
from runtime.wire import messages as wire
from tests.server.in_loop import USERS, Serving, run, serving

PROMPT = "The sky is blue because"


def greedy(target: Path, prompt: list[int], count: int) -> list[int]:
    """By transformers, one token a time."""
    model, context = LlamaForCausalLM.from_pretrained(target), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            context.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))
    return context[len(prompt) :]


async def over_tcp(it: Serving, prompt: list[int], sampling: Sampling) -> list[int]:
    """What an edge with a socket gets, which drafts nothing."""
    link = await Link.open(*it.address, it.hello)
    request, tokens = link.request(prompt, sampling, max_nodes=0), []
    while not request.finished:
        tokens.append((await request.verdict()).bonus)
    await link.close()
    return tokens


def test_texts_are_those_of_plain_decoding(tiny_pair: tuple[Path, Path]) -> None:
    """Many at a time; greedy as transformers has it, sampled as over a socket."""

    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            edge, sampled = it.edge(), {"temperature": 0.9, "top_p": 0.9, "top_k": 40}
            ids = edge.encode(PROMPT, raw=True)
            answers = [edge.generate(PROMPT, raw=True, max_tokens=30)]
            answers += [
                edge.generate(PROMPT, raw=True, max_tokens=30, seed=seed, **sampled)
                for seed in range(8)
            ]
            texts = [await answer.text for answer in answers]
            assert answers[0].tokens == greedy(tiny_pair[0], ids, 30)
            for seed, answer in enumerate(answers[1:]):
                assert answer.tokens == await over_tcp(it, ids, Sampling(30, seed=seed, **sampled))
            assert len(set(texts)) == len(texts)
            assert {answer.finish_reason for answer in answers} == {"length"}
            statistics = answers[0].statistics
            assert statistics.tokens == statistics.verifications == 30
            assert not statistics.drafted_nodes

    run(scenario)


def test_an_answer_that_nobody_wants_gives_its_pages_back(tiny_pair: tuple[Path, Path]) -> None:
    """In few turns of the loop, whether it was reading, waiting, or being written."""

    async def scenario() -> None:
        async with serving(tiny_pair[0], max_requests=1) as it:
            edge = it.edge()
            written = edge.generate(PROMPT * 4, raw=True, max_tokens=800)
            waiting = edge.generate(PROMPT * 4, raw=True, max_tokens=800)
            async for _ in written:
                break  # which cancels it
            await it.until(lambda: len(it.server.requests) == 1)
            assert written.finish_reason == "cancelled"
            assert it.server.totals.tokens < 200  # of 800: it did not simply come to its end
            await it.until(lambda: it.server.scheduler.running)
            assert it.free_pages < it.all_pages
            waiting.cancel()
            at_once = edge.generate(PROMPT, raw=True, max_tokens=800)
            at_once.cancel()
            await it.until(lambda: not it.server.requests and it.free_pages == it.all_pages)
            it.server.scheduler.check()

    run(scenario)


def test_it_is_connected_while_it_writes(tiny_pair: tuple[Path, Path]) -> None:
    """An edge that nobody needs takes no place, and comes back when it is asked."""

    async def scenario() -> None:
        async with serving(tiny_pair[0], max_connections=1) as it:
            edge = it.edge()
            for _ in range(3):
                answer = edge.generate(PROMPT, raw=True, max_tokens=9)
                await it.until(lambda: it.door.admitted)
                with pytest.raises(ServerError, match="1 edges are connected"):
                    await Link.open(*it.address, it.hello)
                await answer.text
                await it.until(lambda: not it.door.peers())
            link = await Link.open(*it.address, it.hello)
            with pytest.raises(ServerError, match="1 edges are connected") as refused:
                await edge.generate(PROMPT, raw=True, max_tokens=9).text
            assert refused.value.code is wire.ErrorCode.BUSY
            await link.close()
            await it.until(lambda: not it.door.peers())
            assert await edge.generate(PROMPT, raw=True, max_tokens=9).text

    run(scenario)


def test_a_user_has_one_share_over_http_and_over_edges(tiny_pair: tuple[Path, Path]) -> None:
    """Of max_user_requests; another user has their own."""

    async def scenario() -> None:
        options = {"max_user_requests": 2, "pipeline": False, "credits": "open"}
        async with serving(tiny_pair[0], USERS, **options) as it:
            alice, bob = it.edge("alice"), it.edge("bob")
            hello = wire.Hello(1, 260, it.hello.vocabulary_hash, "tiny", "alice")
            link = await Link.open(*it.address, hello, Credentials(USERS["alice"]))
            held = link.request([1, 2, 3], Sampling(max_tokens=9))
            await held.verdict()  # and no draft: it waits for one
            first = alice.generate(PROMPT, raw=True, max_tokens=800)
            await it.until(lambda: len(it.server.requests) == 2)
            with pytest.raises(ServerError, match="2 of your requests are running") as refused:
                await alice.generate(PROMPT, raw=True, max_tokens=1).text
            assert refused.value.code is wire.ErrorCode.BUSY
            assert await bob.generate(PROMPT, raw=True, max_tokens=5).text
            held.close()
            await it.until(lambda: len(it.server.requests) == 1)
            assert await alice.generate(PROMPT, raw=True, max_tokens=5).text
            first.cancel()
            await link.close()

    run(scenario)


def test_numbers_and_connections_have_their_limits(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0], max_requests=2, max_waiting=3) as it:
            edge = it.edge()
            answers = [edge.generate(PROMPT, raw=True, max_tokens=40) for _ in range(5)]
            await it.until(lambda: len(it.server.requests) == 5)
            with pytest.raises(ServerError, match="5 requests are running") as refused:
                await edge.generate(PROMPT, raw=True, max_tokens=1).text
            assert refused.value.code is wire.ErrorCode.BUSY
            assert len({await answer.text for answer in answers}) == 1

    run(scenario)


def test_users_share_no_pages_and_a_user_does(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0], USERS) as it:
            scheduler, found = it.server.scheduler, []
            for user in ("alice", "bob", "alice"):
                before = scheduler.hit_tokens
                await it.edge(user).generate(PROMPT * 8, raw=True, max_tokens=20).text
                found.append(scheduler.hit_tokens - before)
            assert found[:2] == [0, 0]
            assert found[2] >= 8 * len(PROMPT) - 16

    run(scenario)


def test_another_users_token_opens_nothing(tiny_pair: tuple[Path, Path]) -> None:
    """The proof is made and checked as over a socket."""

    async def scenario() -> None:
        async with serving(tiny_pair[0], USERS) as it:
            for token in (b"b" * 32, b""):
                edge = LocalEdge(it.local, "alice", token)
                with pytest.raises(ServerError) as refused:
                    await edge.generate(PROMPT, raw=True, max_tokens=1).text
                assert refused.value.code is wire.ErrorCode.AUTHENTICATION
            await it.until(lambda: not it.door.peers())

    run(scenario)


def test_looks_of_both_ends_leave_it_alone(tiny_pair: tuple[Path, Path]) -> None:
    """One request waits for long; its edge says nothing but that it is there."""

    async def scenario() -> None:
        async with serving(tiny_pair[0], max_requests=1, silence_s=4.0) as it:
            edge = it.edge()
            first = edge.generate(PROMPT, raw=True, max_tokens=900)
            second = edge.generate(PROMPT, raw=True, max_tokens=3)
            await it.until(lambda: len(it.server.requests) == 2)
            link = await edge.uplink.link()
            for _ in range(20):
                await it.server.watch.look()
                link._watch()
                for _ in range(6):  # a Ping and its Pong, either way
                    await asyncio.sleep(0)
            assert len(it.server.requests) == 2
            first.cancel()
            assert await second.text

    run(scenario)


def test_a_drain_lets_answers_end_and_takes_no_new_ones(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            edge = it.edge()
            running = edge.generate(PROMPT, raw=True, max_tokens=60)
            await it.until(lambda: len(running.tokens) > 2)
            draining = asyncio.ensure_future(it.server._drain())
            await asyncio.sleep(0)
            assert edge.unready() == "the server is stopping"
            with pytest.raises(ServerError, match="the server is stopping") as refused:
                await edge.generate(PROMPT, raw=True, max_tokens=1).text
            assert refused.value.code is wire.ErrorCode.DRAINING
            await running.text
            assert len(running.tokens) == 60
            await draining
        with pytest.raises(ServerError):
            await edge.generate(PROMPT, raw=True, max_tokens=1).text

    run(scenario)


def test_a_server_that_stops_ends_its_answers(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            answer = it.edge().generate(PROMPT, raw=True, max_tokens=900)
            await it.until(lambda: len(answer.tokens) > 2)
        with pytest.raises(ServerError, match="closed the connection"):
            await answer.text

    run(scenario)


def test_what_cannot_be_asked_is_told_before_anything_is_sent(
    tiny_pair: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it:
            edge = it.edge()
            assert (edge.model, edge.max_context, edge.unready()) == ("tiny", 1024, "")
            for prompt, options in (("", {}), ("x", {"top_p": 1.1}), ("x", {"stop": [""]})):
                with pytest.raises(ValueError, match=r"."):
                    edge.generate(prompt, raw=True, **options)
            with pytest.raises(ServerError, match="the context of tiny holds 1024") as refused:
                await edge.generate("x" * 1024, raw=True).text
            assert refused.value.code is wire.ErrorCode.LIMIT
            assert not it.server.requests

    run(scenario)
