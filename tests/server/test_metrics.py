"""What a server process counts, against what its edges counted themselves."""

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from runtime.config import ServerConfig, version
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import TreeShape
from runtime.edge.loop import Drafting, Round, generate
from runtime.edge.net.asking import opening
from runtime.edge.net.link import Credentials, Link, Request, ServerError
from runtime.grammar.given import Given
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.server import request as request_record
from runtime.server.guide import Guide
from runtime.server.metrics import SECONDS, Metrics
from runtime.server.users import add_user
from runtime.tree import OrderedTree
from runtime.wire import messages as wire
from runtime.wire.places import connect
from runtime.wire.tls import load_certificate
from tests.certificates import self_signed
from tests.server.process import Process, Samples, server_process

EMPTY = OrderedTree()
TINY = ("--threads", "1", "--no-pipeline")  # every edge always has the turn, or waits for a credit
PAGE_TOKENS = 16


def nobody_is_there(now: Samples) -> bool:
    """The edges of earlier tests have left."""
    return now["edges_connected",] == 0


def test_credits_of_silent_edges_go_to_others(
    tiny_pair: tuple[Path, Path], tmp_path: Path, hello: wire.Hello
) -> None:
    """Steps of one place: a credit comes back although nothing else happens on the server.

    The places of several steps may be given away before a request has to wait for one.
    """
    options = [*TINY, "--model", str(tiny_pair[0]), "--max-batch", "1", "--credits", "drr"]

    async def scenario(server: Process) -> tuple[int, Samples, Samples]:
        link = await Link.open(*server.address, hello)
        requests = [link.request([1, 2, 3], Sampling(9), max_nodes=4) for _ in range(2)]
        silent = 0
        while (await requests[silent].verdict()).turn is wire.Turn.EDGE:
            silent += 1
            if silent == len(requests):
                requests.append(link.request([1, 2, 3], Sampling(9), max_nodes=4))
        assert silent, "there was no credit to begin with"
        await requests[silent].credit()
        # on a slow machine the steps until then may have had a place before a credit was late
        late = server.samples_once(lambda now: now["credits_wasted_total",] > 0)
        requests[0].send(4, EMPTY)
        await requests[0].verdict()
        await link.close()
        return silent, late, server.samples_once(nobody_is_there)

    with server_process(tmp_path / "log", *options) as server:
        silent, late, end = asyncio.run(asyncio.wait_for(scenario(server), 120))
    assert late["credits_given_total",] == silent + 1
    wasted = late["credits_wasted_total",]
    assert 1 <= wasted <= silent
    assert late["credits_outstanding",] == silent + 1 - wasted
    assert late["credits_window",] >= late["credits_outstanding",]
    assert end["credits_outstanding",] == 0


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    token = folder / "alice.token"
    token.write_text(add_user(folder / "users.toml", "alice"), encoding="utf-8")
    token.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def server(tiny_pair: tuple[Path, Path], secrets: Path) -> Iterator[Process]:
    """A pool of 32 pages, one user."""
    options = [*TINY, "--model", str(tiny_pair[0]), "--kv-tokens", str(32 * PAGE_TOKENS)]
    options += ["--max-nodes", "15", "--users", str(secrets / "users.toml")]
    options += ["--max-user-requests", "3"]
    with server_process(secrets / "log", *options) as process:
        assert process.address, "it counts nothing before the model is loaded"
        yield process


@pytest.fixture
def hello(tiny_pair: tuple[Path, Path]) -> wire.Hello:
    """Alice's; a server without users does not ask."""
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    return wire.Hello(1, tokenizer.vocabulary_size, tokenizer.vocabulary_hash(), "tiny", "alice")


@pytest.fixture
def credentials(secrets: Path) -> Credentials:
    return Credentials((secrets / "alice.token").read_bytes())


def gained(now: Samples, before: Samples) -> Samples:
    """What was counted in between."""
    return {name: value - before.get(name, 0) for name, value in now.items()}


async def answer(link: Link, batcher: Batcher, prompt: list[int]) -> list[Round]:
    """Every round, as the edge saw it."""
    drafting = Drafting(TreeShape(12, 4, 4, 4))
    return [round_ async for round_ in generate(link, batcher, prompt, Sampling(40), drafting)]


def test_an_edge_and_its_server_count_the_same(
    server: Process,
    tiny_pair: tuple[Path, Path],
    hello: wire.Hello,
    credentials: Credentials,
    eager: None,
) -> None:
    prompts = [list(b"the same beginning"), list(b"the same beginning"), list(b"another")]

    async def scenario() -> tuple[list[Round], Samples, int, int]:
        engine = open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 512, PAGE_TOKENS)
        batcher = Batcher(Drafter(engine))
        link = await Link.open(*server.address, hello, credentials)
        rounds = [round_ for prompt in prompts for round_ in await answer(link, batcher, prompt)]

        def all_has_come(now: Samples) -> bool:
            return gained(now, before)["wire_bytes_total", "received"] == link.bytes_sent

        now = gained(await asyncio.to_thread(server.samples_once, all_has_come), before)
        await link.close()
        await batcher.close()
        return rounds, now, link.bytes_sent, link.bytes_received

    before, began_s = server.samples_once(nobody_is_there), time.monotonic()
    rounds, now, bytes_sent, bytes_received = asyncio.run(asyncio.wait_for(scenario(), 120))
    seconds = time.monotonic() - began_s
    tokens = sum(len(round_.tokens) for round_ in rounds)
    sent = [len(round_.commit.sent) for round_ in rounds if round_.commit.sent.tokens]
    depths = [len(round_.tokens) - 1 for round_ in rounds]
    assert now["edges_connected",] == 1
    assert now["wire_bytes_total", "received"] == bytes_sent
    assert now["wire_bytes_total", "sent"] == bytes_received
    assert now["prompt_tokens_total",] == sum(map(len, prompts))
    assert now["generation_tokens_total",] == tokens == 3 * 40
    assert now["spec_decode_num_drafts_total",] == len(sent) > 10
    assert now["spec_decode_num_draft_tokens_total",] == sum(sent)
    assert now["spec_decode_num_accepted_tokens_total",] == sum(depths) > 5
    for position in range(max(depths) + 2):
        name = ("spec_decode_num_accepted_tokens_per_pos_total", str(position))
        assert now.get(name, 0) == sum(depth > position for depth in depths)
    assert now["request_success_total", "length"] == 3
    assert now["request_success_total", "stop"] == 0
    assert now["edge_rtt_seconds_count",] >= 1, "asked when a request was opened, then now and then"
    assert now["time_to_first_token_seconds_count",] == 3
    assert now["inter_token_latency_seconds_count",] == tokens - 3
    waited = ("time_to_first_token_seconds_sum",), ("inter_token_latency_seconds_sum",)
    assert 0 < now["verify_step_seconds_sum",] < sum(now[name] for name in waited) < seconds
    assert now["verify_step_seconds_count",] == now["verify_batch_size_count",] == len(rounds)
    assert now["verify_batch_size_sum",] == len(rounds)
    assert now["prefix_cache_queries_total",] == sum(map(len, prompts)) - 3
    assert now["prefix_cache_hits_total",] == PAGE_TOKENS, "the only full page of the second prompt"
    gone = server.samples_once(nobody_is_there)
    assert gone["edges_connected",] == 0
    assert gained(gone, before)["wire_bytes_total", "received"] == bytes_sent
    assert gained(gone, before)["wire_bytes_total", "sent"] == bytes_received


def test_requests_and_pages_at_a_moment(
    server: Process, hello: wire.Hello, credentials: Credentials
) -> None:
    """Half of the pool is held by an edge whose turn it is; the next has to wait for a page."""

    async def scenario() -> list[Samples]:
        link = await Link.open(*server.address, hello, credentials)
        first = link.request([1] * 250, Sampling(20), max_nodes=4)
        await first.verdict()
        second = link.request([2] * 250, Sampling(20), max_nodes=4)
        full = await asyncio.to_thread(
            server.samples_once, lambda now: now["num_requests_waiting",] == 1
        )
        first.close()
        await second.verdict()
        other = server.samples()
        await link.close()
        return [full, other, server.samples_once(nobody_is_there)]

    before = server.samples_once(nobody_is_there)
    full, other, empty = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert full["num_requests_running",] == 1
    assert full["num_requests_waiting",] == 1
    assert full["kv_cache_usage_perc",] == 16 / 32
    assert other["num_requests_running",] == 1
    assert other["num_requests_waiting",] == 0
    assert empty["num_requests_running",] == 0
    assert empty["kv_cache_usage_perc",] == 0
    assert gained(empty, before)["request_success_total", "length"] == 0


async def ended(request: Request) -> int:
    """Tokens until the end of a request that decodes plainly."""
    tokens = 0
    while not request.finished:
        await request.verdict()
        tokens += 1
    return tokens


def test_requests_that_lose_their_pages(
    server: Process, hello: wire.Hello, credentials: Credentials
) -> None:
    async def scenario() -> list[int]:
        link = await Link.open(*server.address, hello, credentials)
        both = [link.request([n] * 150, Sampling(250), max_nodes=0) for n in (3, 4)]
        tokens = await asyncio.gather(*map(ended, both))
        await link.close()
        return tokens

    before = server.samples_once(nobody_is_there)
    assert asyncio.run(asyncio.wait_for(scenario(), 120)) == [250, 250]
    now = gained(server.samples(), before)
    assert now["generation_tokens_total",] == 500
    assert now["inter_token_latency_seconds_count",] == 498
    assert now["num_preemptions_total",] >= 1, "two of 400 tokens do not fit in 512"
    assert now["prefix_cache_evictions_total",] >= 1
    assert now["prefix_cache_queries_total",] > 2 * 149, "who was preempted asks again"


async def refusal(request: Request) -> str:
    with pytest.raises(ServerError) as caught:
        await ended(request)
    return str(caught.value)


def test_refused_requests_by_code(
    server: Process, hello: wire.Hello, credentials: Credentials
) -> None:
    async def scenario() -> None:
        link = await Link.open(*server.address, hello, credentials)
        await refusal(link.request([1] * 600, Sampling(1)))
        await refusal(link.request([1] * 500, Sampling(200)))  # for the model, but not the pool
        misplaced = link.request([1, 2], Sampling(5))
        await misplaced.verdict()
        misplaced.send(99, EMPTY)
        await refusal(misplaced)
        held = [link.request([1, 2], Sampling(5)) for _ in range(3)]
        for request in held:
            await request.verdict()
        other = await Link.open(*server.address, hello, credentials)
        await refusal(other.request([1, 2], Sampling(5)))
        await link.close()
        await other.close()

    before = server.samples_once(nobody_is_there)
    asyncio.run(asyncio.wait_for(scenario(), 120))
    now = gained(server.samples(), before)
    codes = {code.name.lower(): now["request_errors_total", code.name.lower()] for code in CODES}
    assert codes == dict.fromkeys(codes, 0) | {"limit": 2, "protocol": 1, "busy": 1}


def test_every_request_that_was_opened_ends_in_one_way(
    server: Process, hello: wire.Hello, credentials: Credentials
) -> None:
    """By itself, refused, closed by its edge, left by its edge while it runs or half sent."""

    async def scenario() -> None:
        link = await Link.open(*server.address, hello, credentials)
        await ended(link.request([1, 2], Sampling(3), max_nodes=0))
        await refusal(link.request([1] * 600, Sampling(1)))
        closed = link.request([1, 2], Sampling(9), max_nodes=4)
        await closed.verdict()
        closed.close()
        left = link.request([1, 2], Sampling(9), max_nodes=4)
        await left.verdict()
        link._peer.send(opening(Sampling(9), 77, 50, 0))
        await link.close()

    before, began_s = server.samples_once(nobody_is_there), time.monotonic()
    asyncio.run(asyncio.wait_for(scenario(), 120))
    seconds = time.monotonic() - began_s
    now = gained(server.samples_once(nobody_is_there), before)
    assert now["requests_total",] == 5
    assert now["request_success_total", "length"] == 1
    assert now["request_errors_total", "limit"] == 1
    assert now["requests_cancelled_total",] == 3
    assert now["request_queue_time_seconds_count",] == 3
    assert now["e2e_request_latency_seconds_count",] == 1
    assert 0 < now["e2e_request_latency_seconds_sum",] < seconds
    # the first of them decodes plainly: its verdict, too, stands in line for the next step
    queued_s = now["request_queue_time_seconds_sum",]
    assert 0 < queued_s < now["time_to_first_token_seconds_sum",] < seconds


def test_what_a_server_may_hold_and_which_version_it_is(server: Process) -> None:
    now = server.samples()
    limits = {name[1]: value for name, value in now.items() if name[0] == "limit"}
    assert limits["kv_tokens"] == 32 * PAGE_TOKENS
    assert limits["requests_of_a_user"] == 3
    defaults = ServerConfig()
    assert limits["requests_running"] == defaults.max_requests
    assert limits["requests_waiting"] == defaults.max_waiting
    assert limits["edges_connecting"] == defaults.max_strangers
    assert limits["edges_connected"] == defaults.max_connections
    assert limits["batch_size"] == defaults.max_batch
    assert limits["step_nodes"] == defaults.max_step_nodes
    assert now["build_info", version()] == 1


def test_steps_of_large_models_are_told_apart() -> None:
    assert sum(0.1 < bound < 0.25 for bound in SECONDS) >= 4


CODES = list(wire.ErrorCode)


async def last_words(where: tuple[str, int], *messages: wire.Message | bytes) -> None:
    """Connect, say these one after another, each when the other side has spoken, and be left."""
    heard: asyncio.Queue[wire.Message | None] = asyncio.Queue()
    peer = await connect(
        *where,
        lambda peer, message: heard.put_nowait(message),
        lambda peer, reason: heard.put_nowait(None),
    )
    for message in messages:
        if isinstance(message, bytes):
            peer._transport.write(message)
        else:
            peer.send(message)
        await heard.get()
    while await heard.get() is not None:
        pass


def test_refused_connections_by_code(
    server: Process, hello: wire.Hello, credentials: Credentials
) -> None:
    """Garbage, another version, a guessed proof, and our own edge that has a wrong token."""
    where = server.address

    async def scenario() -> None:
        await last_words(where, b"GET / HTTP/1.1\r\n\r\n")
        await last_words(where, replace(hello, version=9))
        await last_words(where, hello, wire.Proof(bytes(32)))
        with pytest.raises(ServerError):
            await Link.open(*where, hello, Credentials(b"not the token of alice at all"))

    before = server.samples_once(nobody_is_there)
    asyncio.run(asyncio.wait_for(scenario(), 120))
    wanted = {"protocol": 1, "version": 1, "authentication": 2}

    def counts(now: Samples) -> dict[str, float]:
        names = [code.name.lower() for code in CODES]
        return {name: gained(now, before)["connection_errors_total", name] for name in names}

    now = counts(server.samples_once(lambda now: sum(counts(now).values()) == 4))
    assert now == dict.fromkeys(now, 0) | wanted


def test_the_metrics_of_two_servers_are_two() -> None:
    """No global registry: what one counts the other does not."""
    one, other = Metrics(), Metrics()
    one.prompted(5)
    assert one.registry.get_sample_value("specedge:prompt_tokens_total") == 5
    assert other.registry.get_sample_value("specedge:prompt_tokens_total") == 0


def test_verdicts_are_counted_as_prometheus_counts_them() -> None:
    """Against its own histogram, fed token by token, and sums; values on a bucket's bound too."""
    dice, metrics, registry = random.Random(1), Metrics(), CollectorRegistry()
    oracle = Histogram("oracle", "", buckets=SECONDS, registry=registry)
    params = wire.Open(1, 0, 0.0, 1.0, 0.0, 0, 9, 1, ())
    trees = []
    for _ in range(300):
        request = request_record.Request("key", params, limit=9, context=[0], verdict_s=0.0)
        drafted = dice.choice([0, 4, 9])
        accepted = dice.randint(0, drafted)
        now_s = (accepted + 1) * dice.choice([*SECONDS[:-1], dice.uniform(0, 40)])
        metrics.verdict(request, drafted, accepted, now_s)
        trees.append((drafted, accepted))
        for _ in range(accepted + 1):
            oracle.observe(now_s / (accepted + 1))
    found = samples(metrics.registry)
    for (name, *labels), value in samples(registry).items():
        name = name.replace("oracle", "specedge:inter_token_latency_seconds")
        assert found[(name, *labels)] == pytest.approx(value)
    total = "specedge:spec_decode_num_{}_total".format
    assert found["specedge:generation_tokens_total",] == 300 + sum(depth for _, depth in trees)
    assert found[total("drafts"),] == sum(drafted > 0 for drafted, _ in trees)
    assert found[total("draft_tokens"),] == sum(drafted for drafted, _ in trees)
    assert found[total("accepted_tokens"),] == sum(depth for _, depth in trees)
    for position in range(9):
        deeper = sum(depth > position for _, depth in trees)
        assert found[total("accepted_tokens_per_pos"), str(position)] == deeper


def test_texts_that_are_scored_are_no_answers() -> None:
    """What is said of a text that came with its request tells nothing of how fast texts come."""
    threads = ThreadPoolExecutor(1)
    metrics, params = Metrics(), wire.Open(1, 0, 0.0, 1.0, 0.0, 0, 9, 1, ())
    for given in ((), (7, 8, 9)):
        guide = Guide(Given(given, 16), threads, given)
        for verdict_s, accepted in ((None, 1), (0.5, 0)):
            request = request_record.Request("key", params, limit=9, context=[0])
            request.guide, request.verdict_s = guide, verdict_s
            metrics.verdict(request, 2, accepted, 1.0)
    found = samples(metrics.registry)
    assert found["specedge:generation_tokens_total",] == 3
    assert found["specedge:scored_tokens_total",] == 3
    assert found["specedge:time_to_first_token_seconds_count",] == 1
    assert found["specedge:inter_token_latency_seconds_count",] == 1
    assert found["specedge:spec_decode_num_drafts_total",] == 2
    assert found["specedge:spec_decode_num_accepted_tokens_total",] == 1


def test_a_page_tells_when_the_certificate_expires(tmp_path: Path) -> None:
    """And of one that is renewed, when that does."""
    name, metrics = "specedge:certificate_expiration_timestamp_seconds", Metrics()
    assert (name,) not in samples(metrics.registry), "there is none"
    self_signed(tmp_path, "server", days=3)
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    metrics.certified(load_certificate(*pair))
    days = (samples(metrics.registry)[name,] - time.time()) / 86400
    assert days == pytest.approx(3, abs=0.01)


def samples(registry: CollectorRegistry) -> Samples:
    """What a scrape gives, less the times at which counting began."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
