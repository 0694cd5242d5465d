"""The paper's baseline as a process of the bench: draft and target on one server, in turns.

One thread, no network: all requests' drafts, then one verification step with the product's own
scheduler and verifier. A job a line in, its answers and steps a line out.
"""

import dataclasses
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.bench.device import PacedDrafts, PacedTarget
from runtime.bench.records import Answer, Span
from runtime.bench.workers import work
from runtime.edge.draft.batcher import Drafts
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.server.request import NO_NODES, Request
from runtime.server.schedule.scheduler import Limits, Scheduler, Work
from runtime.server.verify.verifier import Failed, Outcome, Verified, verify_batch
from runtime.wire.messages import MAX_NODES, Draft, Open, Turn

PAGE_TOKENS = 16
CHUNK_TOKENS = 256
MAX_CONTEXT_TOKENS = 4096  # of one client: prompt, answer and largest tree


class Client:
    """A request that is being answered, and what its client has seen so far."""

    def __init__(self, question: int, request: Request, speculation: Speculation):
        self.question, self.request, self.speculation = question, request, speculation
        self.asked_s = request.ready_s
        self.prompt_tokens = len(request.context)
        self.arrivals: list[tuple[float, int]] = []

    @property
    def ids(self) -> tuple[int, ...]:
        """The answer so far."""
        return tuple(self.request.context[self.prompt_tokens :])

    def answer(self) -> Answer:
        """What is recorded of it."""
        arrivals, rounds = tuple(self.arrivals), self.request.round
        return Answer(self.question, self.ids, self.asked_s, arrivals, rounds)


class Baseline:
    """A server that drafts for its requests itself: scheduler, verifier and drafter in one thread.

    Jobs follow each other; each is a user of its own, so that none finds the KV of the last.
    """

    def __init__(
        self,
        target: Engine,
        drafter: Drafts,
        vocabulary_size: int,
        sampling: Mapping[str, Any],
        n_clients: int,
    ):
        self.target, self.drafter, self.vocabulary_size = target, drafter, vocabulary_size
        self.sampling = sampling
        limits = Limits(
            max_requests=n_clients,
            max_waiting=0,
            max_batch=n_clients,
            max_step_nodes=n_clients * (MAX_NODES + 1),
            max_nodes=MAX_NODES,
            chunk_tokens=CHUNK_TOKENS,
            page_size=PAGE_TOKENS,
            n_pages=target.kv.n_free,
        )
        self.scheduler = Scheduler(limits, target.kv.allocate, target.kv.free)
        self.clients: dict[int, Client] = {}
        self.steps: list[dict[str, Any]] = []
        self._jobs = 0

    def serve(
        self, prompts: Sequence[Sequence[int]], shape: TreeShape, n_clients: int
    ) -> dict[str, Any]:
        """Answer all prompts, `n_clients` at a time. All were busy until `end_s`."""
        waiting = deque(enumerate(prompts))
        answers: list[Answer] = []
        self.steps, self._jobs = [], self._jobs + 1
        start_s, end_s = time.monotonic(), None
        while waiting or self.clients:
            while waiting and len(self.clients) < n_clients:
                self.ask(*waiting.popleft(), shape)
            answers += self.round()
            if end_s is None and not waiting and len(self.clients) < n_clients:
                end_s = time.monotonic()
        return {
            "start_s": start_s,
            "end_s": end_s,
            "answers": [dataclasses.asdict(answer) for answer in answers],
            "steps": self.steps,
        }

    def ask(self, question: int, prompt: Sequence[int], shape: TreeShape) -> None:
        """Begin a request. Raises Refused if its prompt is too long."""
        params = Open(
            request=question + 1,
            seed=self.sampling["seed"],
            temperature=self.sampling["temperature"],
            top_p=1.0,
            min_p=0.0,
            top_k=0,
            max_tokens=self.sampling["max_tokens"],
            prompt_tokens=len(prompt),
            stop_ids=tuple(self.sampling["stop_ids"]),
        )
        limit = len(prompt) + params.max_tokens
        noise = Noise(params.seed, params.temperature)
        speculation = Speculation(
            list(prompt), limit, shape, Proactive.OFF, noise, self.vocabulary_size
        )
        now_s = time.monotonic()
        request = Request(question, params, limit, list(prompt), ready_s=now_s, user=self._jobs)
        self.scheduler.submit(request)
        self.clients[question] = Client(question, request, speculation)

    def round(self) -> list[Answer]:
        """Draft for everyone, verify once; the answers that this has ended."""
        self._draft([c for c in self.clients.values() if c.request.draft is None])
        batch = self.scheduler.next_batch()
        start_s = time.monotonic()
        outcomes = self.verify(batch)
        self._record(batch, start_s)
        if batch:
            self.scheduler.step_ended()
        return [answer for outcome in outcomes for answer in self._apply(outcome)]

    def verify(self, batch: Sequence[Work]) -> list[Outcome]:
        """One step."""
        return verify_batch(self.target, batch)

    def _draft(self, clients: Sequence[Client]) -> None:
        grow(self.drafter, [client.speculation for client in clients])
        for client in clients:
            request, tree = client.request, client.speculation.send(MAX_NODES)
            place = (request.params.request, request.round, len(request.context))
            request.accept_draft(Draft(*place, tree.tokens, tree.parents), time.monotonic())
            self.scheduler.drafted(request)

    def _record(self, batch: Sequence[Work], start_s: float) -> None:
        """The step as a line of a server's trace."""
        trees = [work.request for work in batch if work.verify]
        self.steps.append(
            {
                "start_s": start_s,
                "end_s": time.monotonic(),
                "chunk_rows": sum(work.chunk for work in batch),
                "requests": [["here", s.key, len(s.draft or NO_NODES), None] for s in trees],
            }
        )

    def _apply(self, outcome: Outcome) -> Iterator[Answer]:
        client = self.clients[outcome.request.key]
        request = client.request
        match outcome:
            case Failed(sentence=sentence):
                raise ValueError(sentence)
            case Verified(path=path):
                accepted, finish = outcome.commit()
                self.scheduler.verified(request)
                request.told(Turn.EDGE)
                client.arrivals.append((time.monotonic(), len(client.ids)))
                client.speculation.commit(path[accepted], request.context[-1])
                if finish:
                    self.drafter.finish(client.speculation)
                    self.scheduler.remove(request)
                    yield self.clients.pop(request.key).answer()


def grow(drafter: Drafts, speculations: Sequence[Speculation]) -> None:
    """Batched passes: first those that catch up with the text, then those that grow trees."""

    def wanted() -> list[Pass]:
        return [Pass(s, frontier) for s in speculations if (frontier := s.frontier(MAX_NODES))]

    while texts := [one for one in wanted() if one.is_text]:
        ran = drafter.run(texts)
        assert all(ran), "the draft's pages suffice for every client's longest context"
    for _ in range(max((s.shape.max_beam_len for s in speculations), default=1) - 1):
        if passes := wanted():
            drafter.run(passes)


def main() -> None:
    """The first line names the models and the sampling; a job, the speeds of the devices."""
    setup = json.loads(sys.stdin.readline())
    kv_tokens = setup["clients"] * MAX_CONTEXT_TOKENS
    target, draft = (
        open_engine(setup[name], setup["weights"], "auto", lambda _: kv_tokens, PAGE_TOKENS)
        for name in ("model", "draft")
    )
    passes: list[Span] = []
    target, drafter = PacedTarget(target, 0.0), PacedDrafts(Drafter(draft), 0.0, passes)
    tokenizer = Tokenizer.load(setup["model"])
    stop_ids = tokenizer.stop_ids | Tokenizer.load(setup["draft"]).stop_ids
    sampling = setup["sampling"] | {"stop_ids": sorted(stop_ids)}
    both = min(drafter.vocabulary_size, target.model.vocab_size)
    baseline = Baseline(target, drafter, both, sampling, setup["clients"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        prompts = [
            tokenizer.chat_prompt([{"role": "user", "content": question}])
            for question in job["questions"]
        ]
        passes.clear()
        target.step_s, drafter.pass_s = job["verify_step_s"], job["draft_pass_s"]
        done = baseline.serve(prompts, TreeShape(**job["shape"]), job["clients"])
        print(json.dumps(done | {"drafting": passes}), flush=True)


if __name__ == "__main__":
    sys.exit(work("runtime.bench.server_only", main))
