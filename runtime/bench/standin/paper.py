"""What SpecEdge (arXiv:2505.17052) reports: Table 1, and the times that follow from its columns.

Two times are stated in section 5.2, for Qwen3 32B with the 1.7B draft: "verification takes 94.2 ms,
while each draft model forward pass needs about 11 ms". The others follow from the server-only
columns alone; nothing of the SpecEdge columns goes into them:

    a cycle of the server-only method is its tokens per verification / its tokens per second
    what a cycle of the 32B pair takes beyond its verification is spent in the draft's passes, as
    many as the draft tree is deep, and so the server's pass of the 1.7B draft is known
    the same draft takes the same time beside the 14B target: what is left is its verification
    the same target verifies in the same time beside the 0.6B draft: what is left is that draft's

The 0.6B draft's pass on an edge is taken to be as much shorter than the 1.7B draft's as on the
server. The depths of the server-only trees, which an exhaustive search found there (appendix A),
are not stated; those here are the ones at which means *and* spreads of Table 1 can be had.
"""

from dataclasses import dataclass
from statistics import fmean

TASKS = ("multi-turn", "translation", "summarization", "qa", "math", "rag")

NODES = 32  # of a tree, appendix A
ANSWER_TOKENS = 256  # appendix A
RTT_MS = 14.07  # section 5
EDGES = 2  # section 5: twice the batch, which is 1
STATED_VERIFY_MS, STATED_DRAFT_PASS_MS = 94.2, 11.0  # section 5.2, 32B/1.7B


@dataclass(frozen=True)
class Row:
    """A row of Table 1. Throughputs in tokens/s, costs in 1000 tokens a dollar."""

    pair: str
    task: str
    server_only: tuple[float, float]  # tokens per verification, mean and deviation
    specedge: tuple[float, float]
    server_only_tokens_s: float
    specedge_tokens_s: float
    server_only_ktokens_dollar: float
    specedge_ktokens_dollar: float

    @property
    def cycle_ms(self) -> float:
        """From one verification of the server-only method to the next."""
        return 1e3 * self.server_only[0] / self.server_only_tokens_s

    @property
    def throughput_ratio(self) -> float:
        return self.specedge_tokens_s / self.server_only_tokens_s

    @property
    def cost_ratio(self) -> float:
        return self.specedge_ktokens_dollar / self.server_only_ktokens_dollar


def _rows(pair: str, *rows: tuple[float, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(pair, task, (a, b), (c, d), *speeds)
        for task, (a, b, c, d, *speeds) in zip(TASKS, rows, strict=True)
    )


# Table 1, by task: tokens per verification of both (mean, deviation), throughputs, cost efficiency.
TABLE_1 = (
    *_rows(
        "14B/1.7B",
        (3.92, 1.51, 3.98, 1.57, 31.78, 66.54, 28.25, 50.60),
        (3.95, 1.47, 4.25, 1.45, 32.24, 65.25, 28.66, 49.47),
        (3.73, 1.60, 3.95, 1.61, 29.70, 67.53, 26.40, 51.22),
        (3.42, 1.57, 3.59, 1.56, 27.30, 62.04, 24.26, 47.09),
        (4.10, 1.48, 4.25, 1.49, 32.84, 72.93, 29.19, 55.28),
        (3.73, 1.53, 3.83, 1.56, 29.89, 64.04, 26.57, 48.78),
    ),
    *_rows(
        "14B/0.6B",
        (3.87, 1.41, 4.41, 2.25, 33.45, 69.58, 29.73, 52.97),
        (3.79, 1.48, 4.67, 2.34, 32.88, 69.00, 29.22, 52.23),
        (3.68, 1.49, 4.21, 2.16, 31.17, 68.60, 27.71, 52.16),
        (3.33, 1.41, 3.79, 1.94, 28.89, 61.90, 25.68, 46.98),
        (3.90, 1.57, 5.27, 2.27, 33.53, 83.88, 29.80, 63.56),
        (3.53, 1.52, 4.29, 2.16, 30.07, 69.51, 26.73, 52.76),
    ),
    *_rows(
        "32B/1.7B",
        (4.22, 1.93, 4.71, 2.66, 24.96, 56.47, 17.80, 35.38),
        (4.08, 1.97, 5.24, 2.84, 24.33, 58.79, 17.34, 36.83),
        (4.19, 2.01, 4.52, 2.68, 24.33, 54.07, 17.65, 33.90),
        (3.62, 1.95, 3.93, 2.49, 21.59, 46.14, 15.39, 28.99),
        (4.60, 1.93, 5.40, 2.78, 27.52, 64.01, 19.62, 40.18),
        (3.89, 2.05, 4.19, 2.69, 22.67, 49.46, 16.16, 31.05),
    ),
)

MEAN_THROUGHPUT_RATIO, MEAN_COST_RATIO = 2.22, 1.91  # section 5.1

# Table 7: inter-token latency, ms, with one edge for 2, 3 and 4 requests, and by how many percent
# that is slower than with an edge for each.
TABLE_7 = {
    "14B/1.7B": ((31.777, 6.8), (36.617, 13.0), (40.099, 16.7)),
    "14B/0.6B": ((30.494, 8.5), (34.028, 15.2), (39.035, 19.0)),
    "32B/1.7B": ((43.539, 5.9), (48.889, 3.9), (58.402, 9.5)),
}
# Table 3: a token of plain decoding, ms: server-only's latency times its speedup, mean over the
# rows of the model of about that size (Llama2 13B, Vicuna 33B).
PLAIN_MS = {"14B": 38.2, "32B": 60.8}


@dataclass(frozen=True)
class Times:
    """Milliseconds of a pair's passes, and the depth of the server-only method's trees."""

    verify_ms: float
    server_pass_ms: float  # of the draft, on the server
    edge_pass_ms: float  # of the draft, on an edge
    depth: int
    server_price: str  # in prices.json


def cycle_ms(pair: str) -> float:
    """Mean over the tasks."""
    return fmean(row.cycle_ms for row in TABLE_1 if row.pair == pair)


def step_points(target: str) -> tuple[tuple[int, float], ...]:
    """What a step of a target costs, "14B" or "32B": its rows and seconds, by the paper's tables.

    One row is a token of plain decoding (Table 3), a tree the verification of `times`, and of two
    to four trees it is known how much longer than one they take (Table 7, with Table 1's latency of
    one tree: two clients share its throughput). More rows never take less. This is the only use of
    a SpecEdge column: what its steps cost, not what its drafts are worth.
    """
    rows = 1 + NODES
    pairs = [pair for pair in TABLE_7 if pair.startswith(target)]
    grown = [1.0]
    for trees in range(len(TABLE_7[pairs[0]])):
        grown.append(max(grown[-1], fmean(_growth(pair, trees) for pair in pairs)))
    verify_ms = times()[pairs[0]].verify_ms
    trees_s = [(rows * (1 + n), 1e-3 * verify_ms * growth) for n, growth in enumerate(grown)]
    return (1, 1e-3 * PLAIN_MS[target]), *trees_s


def _growth(pair: str, place: int) -> float:
    """How many times as long as with one tree a step takes that has the trees of this place."""
    latency_ms, slower = TABLE_7[pair][place]
    alone = fmean(row.specedge_tokens_s for row in TABLE_1 if row.pair == pair)
    return latency_ms / (1 + slower / 100) / (1e3 * EDGES / alone)


def times() -> dict[str, Times]:
    """Of the three pairs, as the module's head derives them."""
    deep, shallow = 5, 4
    large = (cycle_ms("32B/1.7B") - STATED_VERIFY_MS) / deep
    verify = cycle_ms("14B/1.7B") - shallow * large
    small = (cycle_ms("14B/0.6B") - verify) / shallow
    small_on_edge = STATED_DRAFT_PASS_MS * small / large
    return {
        "14B/1.7B": Times(verify, large, STATED_DRAFT_PASS_MS, shallow, "a100-40gb"),
        "14B/0.6B": Times(verify, small, small_on_edge, shallow, "a100-40gb"),
        "32B/1.7B": Times(STATED_VERIFY_MS, large, STATED_DRAFT_PASS_MS, deep, "a100-80gb"),
    }
