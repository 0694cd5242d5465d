"""One run of a workload in one mode: same models, same engine, same kernels in all of them."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.bench.figures import percentile
from runtime.bench.link import Conditions, emulated_link
from runtime.bench.modes import PLAIN, REPLAYED, SERVER_ONLY, Mode
from runtime.bench.records import Answer, Run, read_steps, read_trace
from runtime.bench.workers import Cores, Worker, ask_all, on_cores
from runtime.config import ServerConfig
from runtime.demo import running_server

WARM_UP_TOKENS = 4
# A stated time is held if this share of passes takes no longer, and so much time is left over.
HELD, MARGIN = 0.9, 1.2
MIN_KV_TOKENS, KV_TOKENS_PER_CLIENT = 32768, 1024


@dataclass(frozen=True)
class Shape:
    """The four knobs of a draft tree, named as in EdgeConfig."""

    max_budget: int = 32
    max_n_beams: int = 6
    max_beam_len: int = 6
    max_branch_width: int = 6


@dataclass(frozen=True)
class Setup:
    """What all runs of an evaluation share."""

    questions: tuple[str, ...]
    model: str = "smollm2"
    draft: str = "smollm2-draft"
    drafter: str = ""  # of the edges, as in EdgeConfig
    credits: str = ServerConfig.credits
    weights: str = "stored"
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 1
    batch: int = 1  # trees in one verification step
    edges: int = 2
    draft_pass_s: float = 0.0  # a pass of the draft model takes at least so long
    verify_step_s: float = 0.0  # and a step of the target
    stretch: float = 1.0  # how many times longer these and the link's delays are than asked for
    shape: Shape = field(default_factory=Shape)
    conditions: Conditions = field(default_factory=Conditions)
    cores: Cores = field(default_factory=Cores.split)

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of EdgeConfig that make the text what it is."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def stretched(self, factor: float) -> "Setup":
        """On devices and a link that take `factor` times as long: all ratios are as before."""
        link = self.conditions
        return replace(
            self,
            stretch=self.stretch * factor,
            draft_pass_s=self.draft_pass_s * factor,
            verify_step_s=self.verify_step_s * factor,
            conditions=Conditions(
                rtt_s=link.rtt_s * factor,
                up_bytes_per_s=link.up_bytes_per_s / factor,
                down_bytes_per_s=link.down_bytes_per_s / factor,
                jitter_s=link.jitter_s * factor,
            ),
        )


def run_edges(name: str, mode: Mode, setup: Setup) -> Run:
    """The questions through a server process and one process for each edge, over TCP."""
    batch = setup.edges if mode is PLAIN else setup.batch
    with (
        serving(setup, "--max-batch", str(batch), *mode.server) as (address, trace),
        edge_workers(address, mode, setup) as workers,
    ):
        clients = [asker(i, worker, setup.questions) for i, worker in enumerate(workers)]
        answers, start_s, end_s = ask_all(clients, len(setup.questions))
        steps = read_trace(trace)
    edges = 0 if mode is PLAIN else setup.edges
    return Run(name, setup.edges, edges, start_s, end_s, tuple(answers), steps)


@contextmanager
def serving(setup: Setup, *options: str) -> Iterator[tuple[str, Path]]:
    """A server behind the emulated link: the address for edges, and the trace it writes."""
    cores = setup.cores.server
    models = ("--model", setup.model, "--weights", setup.weights, "--threads", str(len(cores)))
    common = (*models, "--port", "0", "--credits", setup.credits)
    options = (str(setup.verify_step_s), *common, *options)
    with ExitStack() as stack:
        trace = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trace.jsonl"
        with on_cores(cores):
            server = running_server(
                *options, "--trace", str(trace), module="runtime.bench.paced_server"
            )
            address = stack.enter_context(server)
        direct = setup.conditions == Conditions()
        link = nullcontext(address) if direct else emulated_link(address, setup.conditions)
        yield stack.enter_context(link), trace


@contextmanager
def edge_workers(address: str, mode: Mode, setup: Setup) -> Iterator[list[Worker]]:
    """Edges that have loaded their models and answered one question."""
    shape = asdict(setup.shape) | {"draft": setup.draft, "drafter": setup.drafter}
    # the same questions are asked again and again: their answers must not be known
    shape |= {"weights": setup.weights, "earlier_tokens": 0}
    config = {"server": address, **setup.sampling, **shape, **mode.edge}
    job = {"config": config, "draft_pass_s": setup.draft_pass_s}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker("runtime.bench.edge_worker", setup.cores.edges, job))
            for _ in range(setup.edges)
        ]
        for worker in workers:
            worker.wait_ready()
            worker.ask({"prompt": -1, "text": "Hello", "options": {"max_tokens": WARM_UP_TOKENS}})
        yield workers


def asker(client: int, worker: Worker, questions: Sequence[str]) -> Callable[[int], Answer]:
    """A client for `ask_all`: the number of a question in, its answer out."""

    def ask(number: int) -> Answer:
        answer = Answer.read(worker.ask({"prompt": number, "text": questions[number]}))
        return replace(answer, client=client)

    return ask


@contextmanager
def baseline_worker(setup: Setup) -> Iterator[Worker]:
    """A server-only process on the server's cores."""
    job = {name: getattr(setup, name) for name in ("model", "draft", "weights")}
    job |= {"sampling": setup.sampling, "clients": max(setup.batch, setup.edges)}
    with Worker("runtime.bench.server_only", setup.cores.server, job) as worker:
        worker.wait_ready()
        yield worker


def run_server_only(worker: Worker, setup: Setup, clients: int, shape: Shape) -> Run:
    """The questions through the baseline, `clients` at a time."""
    job = {"questions": setup.questions, "clients": clients, "shape": asdict(shape)}
    job |= {"draft_pass_s": setup.draft_pass_s, "verify_step_s": setup.verify_step_s}
    done = worker.ask(job)
    return Run(
        SERVER_ONLY,
        clients,
        0,
        done["start_s"],
        done["end_s"],
        tuple(map(Answer.read, done["answers"])),
        tuple(read_steps(done["steps"])),
        tuple(map(tuple, done["drafting"])),
    )


@contextmanager
def replay_worker(setup: Setup, plain: Run) -> Iterator[Worker]:
    """A process of edges that have recorded their drafts over the plain texts."""
    ids = {answer.prompt: answer.ids for answer in plain.answers}
    job = {
        "model": setup.model,
        "draft": setup.draft,
        "weights": setup.weights,
        "sampling": setup.sampling,
        "shape": asdict(setup.shape),
        "questions": setup.questions,
        "answers": [ids[question] for question in range(len(setup.questions))],
    }
    with Worker("runtime.bench.replay_worker", setup.cores.edges, job) as worker:
        worker.wait_ready()
        yield worker


def run_replayed(worker: Worker, setup: Setup, clients: int) -> Run:
    """The questions by many edges, half of whose trees fit into one step."""
    kv_tokens = max(MIN_KV_TOKENS, clients * KV_TOKENS_PER_CLIENT)
    options = ("--max-batch", str(max(1, clients // 2)), "--kv-tokens", str(kv_tokens))
    with serving(setup, *options) as (address, trace):
        draft_s = setup.draft_pass_s * setup.shape.max_beam_len
        done = worker.ask({"server": address, "clients": clients, "draft_s": draft_s})
        steps = read_trace(trace)
    answers = tuple(map(Answer.read, done["answers"]))
    return Run(REPLAYED, clients, clients, done["start_s"], done["end_s"], answers, steps)


def stretch_to_hold(worker: Worker, setup: Setup, shape: Shape, n_questions: int) -> float:
    """The least factor, 1 or more, by which stated times grow to be what this machine can hold.

    The largest step, with a tree of each edge, and the draft's passes run at this machine's own
    speed for that; edges that share a core may all draft at once.
    """
    own = replace(setup, questions=setup.questions[:n_questions], draft_pass_s=0, verify_step_s=0)
    run = run_server_only(worker, own, max(setup.batch, setup.edges), shape)
    step_s = percentile([s.end_s - s.start_s for s in run.steps if s.verifies_only], HELD)
    pass_s = percentile([end_s - start_s for start_s, end_s in run.drafting], HELD)
    pass_s *= max(1, setup.edges / len(setup.cores.edges))
    pairs = ((step_s, setup.verify_step_s), (pass_s, setup.draft_pass_s))
    return max([1.0, *(MARGIN * own_s / stated_s for own_s, stated_s in pairs if stated_s)])


def best_shape(
    worker: Worker, setup: Setup, shapes: Sequence[Shape], n_questions: int
) -> tuple[Shape, dict[Shape, float]]:
    """The shape with which the baseline gives most tokens per second, and what each one gave."""
    trial = replace(setup, questions=setup.questions[:n_questions])
    rates = {}
    for shape in shapes:
        run = run_server_only(worker, trial, setup.batch, shape)
        tokens = sum(len(answer.ids) for answer in run.answers)
        rates[shape] = tokens / (max(a.arrivals[-1][0] for a in run.answers) - run.start_s)
    return max(rates, key=rates.__getitem__), rates
