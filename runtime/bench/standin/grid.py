"""The cells of `ablations`: in what each differs from the paper's setting; the edges' devices."""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.bench.standin.paper import EDGES, RTT_MS, STATED_DRAFT_PASS_MS


@dataclass(frozen=True)
class Edge:
    """A kind of device, and what a pass of the 1.7B draft takes there."""

    name: str
    pass_ms: float

    @property
    def slowness(self) -> float:
        """How many times as long as on the paper's edge."""
        return self.pass_ms / STATED_DRAFT_PASS_MS


DRAFT_BYTES = 2 * 1.7e9  # 1.7B in 16 bits
RTX_4090_BYTES_PER_MS = 1008e6  # NVIDIA's data sheet


def _gpu(name: str, bytes_per_ms: float) -> Edge:
    """Estimated: reading the weights takes as long as the memory needs, the rest as on the 4090."""
    rest_ms = STATED_DRAFT_PASS_MS - DRAFT_BYTES / RTX_4090_BYTES_PER_MS
    return Edge(name, rest_ms + DRAFT_BYTES / bytes_per_ms)


RTX_4090 = Edge("RTX 4090", STATED_DRAFT_PASS_MS)  # section 5.2
RTX_2080_TI = _gpu("RTX 2080 Ti", 616e6)  # Table 4
RTX_3060_TI = _gpu("RTX 3060 Ti", 448e6)  # Table 4
# llama.cpp decodes Llama2 7B in 16 bits in 92.4 ms on an M2 Pro's GPU
# (github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference, issue 1): by weights, for the draft's.
LAPTOP = Edge("laptop (M2 Pro)", 92.4 * 1.7 / 6.74)
# llama.cpp decodes Qwen3-1.7B in 8 bits at 16.6 tokens/s on a phone's Adreno GPU
# (dev.to/as1as, "I started building a roguelike RPG powered by on-device AI", part 4).
PHONE = Edge("phone (Adreno)", 1e3 / 16.6)

CHECKED_TASK = "qa"  # of the rows that --check runs


@dataclass(frozen=True)
class Cell:
    """A setting that all rows are simulated in; what is not given is as in `table`."""

    group: str
    name: str
    proactive: str = "multi"  # as the edge's option
    pipelined: bool = True
    credits: str = "drr"
    batch: int = 1  # trees in a step
    edges: int = EDGES  # for each of them
    rtt_ms: float = RTT_MS
    jitter: float = 0.0  # each way takes up to this share longer
    loss: float = 0.0  # share of the messages that are lost and sent again
    devices: tuple[Edge, ...] = (RTX_4090,)  # of the edges, in turn
    offers: bool = True  # as the edge's option
    shared: int = (
        0  # requests whose trees share a step, with no more rows than `batch` of them have
    )
    mode: str = ""  # of the bench, which is the same; given where --check compares both


def _cells() -> Iterator[Cell]:
    for name, proactive in (("single path, the paper's", "single"), ("off", "off")):
        mode = "no-proactive" if proactive == "off" else ""
        yield Cell("drafting ahead", name, proactive=proactive, mode=mode)
    yield Cell("steps", "shared by two requests", shared=2, mode="shared-steps")
    for rtt_ms in (1.0, 25.0, 40.0, 65.0, 100.0):
        yield Cell("steps", f"shared by two requests, {rtt_ms:g} ms", shared=2, rtt_ms=rtt_ms)
    yield Cell("steps", "shared, without offers", shared=2, offers=False)
    yield Cell("turns", "off", pipelined=False, mode="no-pipeline")
    yield Cell("turns", "off, nor ahead", "off", pipelined=False)
    for credits in ("drr", "open"):
        yield Cell("credits", f"{credits}, 16 edges, batch 2", credits=credits, batch=2, edges=8)
    for batch in (2, 4, 8):
        yield Cell("batch", str(batch), batch=batch)
    for rtt_ms in (1.0, 5.0, 25.0, 40.0, 65.0, 100.0):
        mode = "specedge" if rtt_ms == 100 else ""
        yield Cell("round trip", f"{rtt_ms:g} ms", rtt_ms=rtt_ms, mode=mode)
    for jitter in (0.25, 1.0, 3.0):
        yield Cell("jitter", f"up to {jitter:.0%} of each way", jitter=jitter)
    for loss in (0.001, 0.01, 0.05):
        yield Cell("loss", f"{loss:.1%}", loss=loss)
    for edge in (RTX_2080_TI, RTX_3060_TI, LAPTOP, PHONE):
        yield Cell("edges", edge.name, devices=(edge,))
    yield Cell("edges", f"{RTX_4090.name} and {PHONE.name}", devices=(RTX_4090, PHONE))


BASE = Cell("all of it", "as in table", mode="specedge")
CELLS = (BASE, *_cells())
GROUPS = tuple(dict.fromkeys(cell.group for cell in CELLS[1:]))
