"""What /metrics tells: what has happened since the start, and how things stand at this moment.

The loop reports events to `Metrics`; gauges are read from the door, the scheduler and the pipeline
when somebody asks, so that no step ever waits for a scrape. What happens thousands of times a
second is counted in plain numbers, which are made a page of when somebody asks. Knows no HTTP.
Names and meanings are those of vLLM where it has the same quantity, under `specedge:`.
"""

import math
from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from runtime.config import version
from runtime.server.door import Door
from runtime.server.policy.pipeline import Pipeline
from runtime.server.request import Request
from runtime.server.router import Router
from runtime.server.schedule.scheduler import Scheduler
from runtime.wire.messages import ErrorCode, Finish
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import Certificate

PREFIX = "specedge:"
# Close to each other where the steps of large models lie.
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25),
    *(0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, math.inf),
)
TREES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, math.inf)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gone_bytes: Count[str] = Count()  # by direction, of connections that have ended
        ProcessCollector(registry=self.registry)
        self.registry.register(_Build())
        self._opened = self._counter(
            "requests",
            "Requests that edges opened; each ends as a success, an error or a cancellation",
        )
        self._cancelled = self._counter(
            "requests_cancelled", "Requests that their edge gave up, or left, before the end"
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were admitted")
        self._verdicts = _Verdicts()
        self.registry.register(self._verdicts)
        self._success = self._counter(
            "request_success", "Requests whose text came to its end", "finished_reason", Finish
        )
        self._request_errors = self._counter(
            "request_errors", "Requests ended by an Error of the server", "code", ErrorCode
        )
        self._connection_errors = self._counter(
            "connection_errors", "Connections ended by an Error of either end", "code", ErrorCode
        )
        self._http_requests = Counter(
            PREFIX + "http_requests",
            "Requests of the OpenAI API that are over; 499 where the client left before an answer",
            ["route", "status"],
            registry=self.registry,
        )
        self.http_streams = Gauge(
            PREFIX + "http_streams_open",
            "Answers of the OpenAI API that are being streamed",
            registry=self.registry,
        )
        self._certificate = _Certificate()
        self.registry.register(self._certificate)
        self._add_times()

    def _add_times(self) -> None:
        self._first_token_s = self._histogram(
            "time_to_first_token_seconds",
            "From the whole prompt to the first verdict of an answer",
            SECONDS,
        )
        self._queue_s = self._histogram(
            "request_queue_time_seconds", "From the whole prompt to its first step", SECONDS
        )
        self._whole_s = self._histogram(
            "e2e_request_latency_seconds",
            "From a request's opening to the end of its text, of those that came to it",
            SECONDS,
        )
        self._rtt_s = self._histogram(
            "edge_rtt_seconds", "Round trip to an edge, measured when it is admitted", SECONDS
        )
        self._batch_trees = self._histogram(
            "verify_batch_size", "Trees in a step; 0 if it held chunks of prompts alone", TREES
        )
        self._step_s = self._histogram(
            "verify_step_seconds", "Time of a step: the target's pass and the verdicts", SECONDS
        )

    def watch(
        self, door: Door, scheduler: Scheduler | None = None, pipeline: Pipeline | None = None
    ) -> None:
        """Read how these stand at every scrape; a redirecting front has a door alone."""
        self.registry.register(_AtTheDoor(door, self._gone_bytes))
        if door.router is not None:
            self.registry.register(_Replicas(door.router))
        self.registry.register(_Limits(door, scheduler))
        self.registry.register(_Adapters(door))
        if scheduler is not None and pipeline is not None:
            self.registry.register(_AtWork(scheduler, pipeline))

    def certified(self, certificate: Certificate | None) -> None:
        """This one is served from now on."""
        self._certificate.expires_s = certificate.expires_s if certificate else None

    def pong(self, rtt_s: float) -> None:
        """An edge has answered a Ping."""
        self._rtt_s.observe(rtt_s)

    def edge_left(self, peer: FramedProtocol) -> None:
        """A connection has ended, admitted or not."""
        self._gone_bytes["received"] += peer.bytes_received
        self._gone_bytes["sent"] += peer.bytes_sent
        if peer.ended_with is not None:
            self._connection_errors.labels(label(peer.ended_with)).inc()

    def http_answered(self, route: str, status: int) -> None:
        """A request of the API is over; of one that got no answer, the status is 499."""
        self._http_requests.labels(route, str(status)).inc()

    def opened(self) -> None:
        """An edge has opened a request, which may still be refused."""
        self._opened.inc()

    def cancelled(self) -> None:
        """A request has ended before its text, and not by an Error of the server."""
        self._cancelled.inc()

    def first_step(self, request: Request, start_s: float) -> None:
        """A request is in a step for the first time; `request.ready_s` is still its prompt's."""
        self._queue_s.observe(start_s - request.ready_s)

    def prompted(self, tokens: int) -> None:
        """A request was admitted, or waits to be."""
        self._prompt_tokens.inc(tokens)

    def refused(self, code: ErrorCode) -> None:
        """A request was ended with an Error."""
        self._request_errors.labels(label(code)).inc()

    def step_ended(self, trees: int, step_s: float) -> None:
        """A step that verified `trees` trees is over."""
        self._batch_trees.observe(trees)
        self._step_s.observe(step_s)

    def verdict(self, request: Request, drafted: int, accepted: int, now_s: float) -> None:
        """`accepted` of `drafted` nodes, and one token more, were added to the request's text.

        `request.verdict_s` is still that of the verdict before, `request.ready_s` the draft's.
        """
        if request.is_given:
            self._verdicts.scored += accepted + 1
        else:
            self._written(request, drafted, accepted, now_s)
        if request.finish:
            self._success.labels(label(request.finish)).inc()
            self._whole_s.observe(now_s - request.opened_s)

    def _written(self, request: Request, drafted: int, accepted: int, now_s: float) -> None:
        tokens = accepted + 1
        self._verdicts.tokens += tokens
        if drafted:
            self._verdicts.drafted += drafted
            self._verdicts.trees_by_depth[accepted] += 1
        if request.verdict_s is None:
            self._first_token_s.observe(now_s - request.ready_s)
        else:
            self._verdicts.inter_token_s.observe((now_s - request.verdict_s) / tokens, tokens)

    def _counter(
        self, name: str, help: str, label_name: str = "", values: type[IntEnum] | None = None
    ) -> Counter:
        """A counter; with `values`, each of them stands there from the start, at 0."""
        names = [label_name] if label_name else []
        counter = Counter(PREFIX + name, help, names, registry=self.registry)
        for value in values or ():
            if value:  # 0 stands for nothing: Finish.NONE
                counter.labels(label(value))
        return counter

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(PREFIX + name, help, buckets=buckets, registry=self.registry)


def label(value: IntEnum) -> str:
    """A code as it is spelled in labels and logs."""
    return value.name.lower()


class _Buckets:
    """A histogram over `SECONDS`, in as many numbers."""

    def __init__(self) -> None:
        self._counts = [0] * len(SECONDS)
        self._sum_s = 0.0

    def observe(self, value_s: float, times: int) -> None:
        """Count a value so many times."""
        self._counts[bisect_left(SECONDS, value_s)] += times
        self._sum_s += value_s * times

    def family(self, name: str, help: str) -> Metric:
        """As a scrape shows it."""
        bounds = ("+Inf" if math.isinf(bound) else str(float(bound)) for bound in SECONDS)
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(PREFIX + name, help, buckets=buckets, sum_value=self._sum_s)


@dataclass(eq=False)
class _Verdicts(Collector):
    """What verdicts gave, and what became of the trees that had nodes."""

    tokens: int = 0
    scored: int = 0  # that came with their request
    drafted: int = 0
    trees_by_depth: Count[int] = field(default_factory=Count)  # by nodes accepted
    inter_token_s: _Buckets = field(default_factory=_Buckets)

    def collect(self) -> Iterator[Metric]:
        trees = self.trees_by_depth
        yield _count("generation_tokens", "Tokens of answers, given by verdicts", self.tokens)
        yield _count(
            "scored_tokens",
            "Tokens of texts that came to be scored, as with `echo`; not among those of answers",
            self.scored,
        )
        yield _count("spec_decode_num_drafts", "Trees verified that had nodes", trees.total())
        yield _count("spec_decode_num_draft_tokens", "Nodes of these trees", self.drafted)
        yield _count(
            "spec_decode_num_accepted_tokens",
            "Nodes that were accepted",
            sum(depth * count for depth, count in trees.items()),
        )
        by_position = CounterMetricFamily(
            PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Nodes that were accepted, by depth; the root's children have position 0",
            labels=["position"],
        )
        for position in range(max(trees, default=0)):
            deeper = sum(count for depth, count in trees.items() if depth > position)
            by_position.add_metric([str(position)], deeper)
        yield by_position
        yield self.inter_token_s.family(
            "inter_token_latency_seconds",
            "Between two verdicts, over the tokens of the second; counted once for each token",
        )


@dataclass(eq=False)
class _AtTheDoor(Collector):
    """Who is connected, and what has passed."""

    door: Door
    gone_bytes: Count[str]

    def collect(self) -> Iterator[Metric]:
        yield _gauge("edges_connected", "Edges that are admitted", len(self.door.admitted))
        peers = self.door.peers()
        family = CounterMetricFamily(
            PREFIX + "wire_bytes", "Bytes of frames, TLS not counted", labels=["direction"]
        )
        received = sum(peer.bytes_received for peer in peers)
        sent = sum(peer.bytes_sent for peer in peers)
        family.add_metric(["received"], self.gone_bytes["received"] + received)
        family.add_metric(["sent"], self.gone_bytes["sent"] + sent)
        yield family


@dataclass(eq=False)
class _Replicas(Collector):
    """Those that a front sends edges to, as of the last look."""

    router: Router

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            PREFIX + "replica_ready",
            "Of a front: whether edges are sent to a replica",
            labels=["replica"],
        )
        edges = GaugeMetricFamily(
            PREFIX + "replica_edges",
            "Of a front: edges of a replica, those sent included",
            labels=["replica"],
        )
        for replica in self.router.replicas:
            ready.add_metric([replica.address.name], not replica.unready)
            edges.add_metric([replica.address.name], replica.edges + replica.sent)
        yield from (ready, edges)


@dataclass(eq=False)
class _Certificate(Collector):
    """Until when edges, and clients of the API, will take it."""

    expires_s: float | None = None  # since 1970; None where there is no certificate

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            PREFIX + "certificate_expiration_timestamp_seconds",
            "When the certificate that is served expires, in seconds since 1970",
        )
        if self.expires_s is not None:
            family.add_metric([], self.expires_s)
        yield family


class _Build(Collector):
    """Which build this is."""

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            PREFIX + "build_info", "1, for the version that runs", labels=["version"]
        )
        family.add_metric([version()], 1)
        yield family


@dataclass(eq=False)
class _Limits(Collector):
    """What saturation is measured against."""

    door: Door
    scheduler: Scheduler | None

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            PREFIX + "limit", "Most of a kind that may be, as the options say", labels=["of"]
        )
        config = self.door.config
        edges = min(config.max_connections, self.door.room)
        limits = {"edges_connecting": config.max_strangers, "edges_connected": edges}
        if self.scheduler is not None:
            of = self.scheduler.limits
            limits |= {"requests_running": of.max_requests, "requests_waiting": of.max_waiting}
            limits |= {"requests_of_a_user": config.max_user_requests, "batch_size": of.max_batch}
            limits |= {"step_nodes": of.max_step_nodes, "kv_tokens": of.n_pages * of.page_size}
        for name, value in limits.items():
            family.add_metric([name], value)
        yield family


@dataclass(eq=False)
class _Adapters(Collector):
    """Which adapters requests may name, as gateways for HTTP clients ask.

    All of them stay in memory: none is ever waited for.
    """

    door: Door

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            PREFIX + "lora_requests_info",
            "1, where there are adapters: those that are loaded, and those that wait to be",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        names = self.door.identity.adapters if self.door.identity is not None else ()
        if names:
            # a time elsewhere, by which the latest of several is known; here it is always this one
            family.add_metric([str(len(names)), ",".join(names), ""], 1)
        yield family


@dataclass(eq=False)
class _AtWork(Collector):
    """Requests, pages and credits."""

    scheduler: Scheduler
    pipeline: Pipeline

    def collect(self) -> Iterator[Metric]:
        scheduler, window = self.scheduler, self.pipeline.credits.window
        cache, n_pages = scheduler.cache, scheduler.limits.n_pages
        yield _gauge("num_requests_running", "Requests that hold pages", len(scheduler.running))
        yield _gauge("num_requests_waiting", "Requests that wait for pages", len(scheduler.waiting))
        yield _gauge(
            "kv_cache_usage_perc",
            "Share of the KV pages that requests hold; 1 is all of them",
            1 - cache.room() / n_pages,
        )
        yield self._cache_config()
        yield _count(
            "num_preemptions",
            "Requests that lost their pages to older ones",
            scheduler.preemptions,
        )
        yield _count(
            "prefix_cache_queries",
            "Tokens looked for in the prefix cache",
            scheduler.sought_tokens,
        )
        yield _count("prefix_cache_hits", "Of these, tokens found there", scheduler.hit_tokens)
        yield _count(
            "prefix_cache_evictions",
            "Pages of the prefix cache given up for others",
            cache.evictions,
        )
        yield from self._spilled()
        yield _gauge("credits_outstanding", "Credits that are out", len(window))
        yield _gauge("credits_window", "Credits that may be out", window.size)
        yield _count("credits_given", "Credits given", window.given)
        yield _count(
            "credits_wasted",
            "Credits taken back because the tree did not come in time",
            window.expired,
        )

    def _spilled(self) -> Iterator[Metric]:
        spill = self.scheduler.spill
        family = GaugeMetricFamily(
            PREFIX + "spilled_pages",
            "Pages of the prefix cache that are kept outside of the KV pool",
            labels=["place"],
        )
        family.add_metric(["memory"], spill.in_memory)
        family.add_metric(["disk"], spill.on_disk)
        yield family
        yield _count("spilled_pages_found", "Of these, pages that came back", spill.hits)

    def _cache_config(self) -> Metric:
        limits = self.scheduler.limits
        family = GaugeMetricFamily(
            PREFIX + "cache_config_info",
            "1, for the tokens of a KV page and the number of pages",
            labels=["block_size", "num_gpu_blocks"],
        )
        family.add_metric([str(limits.page_size), str(limits.n_pages)], 1)
        return family


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, help, value)


def _count(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, help, value)
