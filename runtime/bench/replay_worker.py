"""Many edges in one process of the bench: what they send was drafted before, over the same text.

For more edges than this machine's spare cores could carry. A recorded tree is sent after the time
that its passes would take, so the server and the link see what they would of real edges, but for
one thing: nothing is drafted while a tree is in flight. Rows made so are marked as replayed.
"""

import asyncio
import dataclasses
import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.bench.records import Answer
from runtime.bench.server_only import grow
from runtime.bench.workers import work
from runtime.config import parse_address
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Noise, Proactive, Speculation, TreeShape
from runtime.edge.net.link import Link
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.tree import Tree
from runtime.wire import messages as wire

PAGE_TOKENS = 16
CONTEXT_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class Recording:
    """A prompt, and the tree drafted after each token of its answer: trees[n] after n tokens."""

    prompt: tuple[int, ...]
    trees: tuple[Tree, ...]


def record(
    drafter: Drafter, prompt: Sequence[int], ids: Sequence[int], shape: TreeShape, noise: Noise
) -> Recording:
    """Draft after every token of a known answer, wherever a verdict may leave the text."""
    limit = len(prompt) + len(ids) + shape.max_beam_len + 1
    vocabulary = drafter.vocabulary_size
    speculation = Speculation(list(prompt), limit, shape, Proactive.OFF, noise, vocabulary)
    speculation.commit(0, ids[0])
    trees = [Tree()]
    for token in ids[1:]:
        grow(drafter, [speculation])
        sent = speculation.send(wire.MAX_NODES)
        trees.append(Tree(sent.tokens, sent.parents))
        speculation.commit(0, token)
    drafter.finish(speculation)
    return Recording(tuple(prompt), tuple(trees))


def first_nodes(tree: Tree, n_nodes: int, max_depth: int) -> Tree:
    """As much of a tree as a grant and the end of the text allow; parents precede children."""
    kept: dict[int, int] = {0: 0}
    tokens: list[int] = []
    parents: list[int] = []
    rows = zip(tree.tokens, tree.parents, tree.depths(), strict=True)
    for node, (token, parent, depth) in enumerate(rows, 1):
        if depth <= max_depth and len(tokens) < n_nodes:
            tokens.append(token)
            parents.append(kept[parent])
            kept[node] = len(tokens)
    return Tree(tuple(tokens), tuple(parents))


async def answer(
    link: Link, question: int, recording: Recording, sampling: Sampling, draft_s: float
) -> Answer:
    """One answer over a link, `draft_s` seconds for each tree."""
    asked_s, bytes_before = time.monotonic(), link.bytes_sent + link.bytes_received
    ids: list[int] = []
    arrivals: list[tuple[float, int]] = []
    tree, rounds = Tree(), 0
    request = link.request(recording.prompt, sampling)
    while not request.finished:
        verdict = await request.verdict()
        ids += [tree.tokens[node - 1] for node in tree.path(verdict.node)] + [verdict.bonus]
        arrivals.append((request.arrived_s, len(ids)))
        tree, rounds = Tree(), rounds + 1
        if verdict.turn is not wire.Turn.SERVER:
            await asyncio.sleep(draft_s)
            waits = verdict.turn is wire.Turn.WAIT
            max_nodes = (await request.credit() if waits else verdict).max_nodes
            recorded = recording.trees[len(ids)] if len(ids) < len(recording.trees) else Tree()
            tree = first_nodes(recorded, max_nodes, sampling.max_tokens - len(ids) - 1)
            request.send(len(recording.prompt) + len(ids), tree)
    request.close()
    wire_bytes = link.bytes_sent + link.bytes_received - bytes_before
    return Answer(question, tuple(ids), asked_s, tuple(arrivals), rounds, wire_bytes=wire_bytes)


async def answer_all(
    recordings: Sequence[Recording], job: Mapping[str, Any], hello: wire.Hello, sampling: Sampling
) -> dict[str, Any]:
    """All questions by `clients` edges, each with a link of its own; all busy until `end_s`."""
    waiting = deque(enumerate(recordings))
    answers: list[Answer] = []

    async def client(link: Link) -> float:
        while waiting:
            answers.append(await answer(link, *waiting.popleft(), sampling, job["draft_s"]))
        idle_s = time.monotonic()
        await link.close()
        return idle_s

    host, port = parse_address(job["server"])
    links = [await Link.open(host, port, hello) for _ in range(job["clients"])]
    start_s = time.monotonic()
    end_s = min(await asyncio.gather(*map(client, links)))
    done = [dataclasses.asdict(one) for one in answers]
    return {"start_s": start_s, "end_s": end_s, "answers": done}


def main() -> None:
    """The first line has the models, the sampling, the questions and their plain answers."""
    setup = json.loads(sys.stdin.readline())
    tokenizer, targets = Tokenizer.load(setup["draft"]), Tokenizer.load(setup["model"])
    engine = open_engine(
        setup["draft"], setup["weights"], "auto", lambda _: CONTEXT_TOKENS, PAGE_TOKENS
    )
    sampling = Sampling(**setup["sampling"], stop_ids=tuple(sorted(tokenizer.stop_ids)))
    noise = Noise(sampling.seed, sampling.temperature)
    drafter, shape = Drafter(engine), TreeShape(**setup["shape"])
    recordings = [
        record(
            drafter,
            targets.chat_prompt([{"role": "user", "content": question}]),
            ids,
            shape,
            noise,
        )
        for question, ids in zip(setup["questions"], setup["answers"], strict=True)
    ]
    rows = drafter.vocabulary_size
    hello = wire.Hello(wire.VERSION, rows, tokenizer.vocabulary_hash(rows), "replayed")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        done = asyncio.run(answer_all(recordings, json.loads(line), hello, sampling))
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    sys.exit(work("runtime.bench.replay_worker", main))
