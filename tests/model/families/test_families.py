"""Every family of published.json: logits as transformers has them, or a refusal in a sentence."""

import pytest
import torch

from runtime.model.config import FAMILIES as OWN
from runtime.model.engine import Engine, KeptPath, TreeRequest
from runtime.model.open import open_engine
from tests.model.families.small import FAMILIES, save
from tests.model.tiny import assert_close, chain, judge, path_to, random_tokens, random_tree

PROMPT_TOKENS, CHUNK, TREE_NODES = 27, 10, 20
RUNS = [name for name, family in FAMILIES.items() if family.model_type in OWN]


@pytest.mark.parametrize("name", RUNS)
def test_logits_are_those_of_transformers(name, tmp_path, generator):
    """A prompt in two chunks, the second beside another prompt; a tree; the text that was kept.

    The windows of the small models hold 8 tokens, and scaled positions were trained up to 16, so
    the tree's nodes lie beyond both.
    """
    theirs = save(FAMILIES[name], tmp_path)
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda model: 256, 4)
    prompt, other = random_tokens(PROMPT_TOKENS, generator), random_tokens(7, generator)
    pages, others = engine.kv.allocate(16), engine.kv.allocate(4)
    first = engine.forward([chain(prompt[:CHUNK], 0, pages)])
    both = engine.forward([chain(prompt[CHUNK:], CHUNK, pages), chain(other, 0, others)])
    logits = torch.cat((first, both))
    assert_close(logits[:PROMPT_TOKENS], judge(theirs, prompt))
    assert_close(logits[PROMPT_TOKENS:], judge(theirs, other))

    tree, parents = random_tokens(TREE_NODES, generator), random_tree(TREE_NODES, generator)
    step = TreeRequest([5], [-1], len(other), others, [0])
    request = TreeRequest(tree, parents, len(prompt), pages, range(TREE_NODES))
    logits = engine.forward([step, request])
    assert_close(logits[:1], judge(theirs, [*other, 5])[-1:])
    for leaf in set(range(TREE_NODES)) - set(parents):
        path = path_to(parents, leaf)
        expected = judge(theirs, prompt + [tree[node] for node in path])
        assert_close(logits[1:][path], expected[PROMPT_TOKENS:])
    check_bits(engine, request, logits[1:])

    path = path_to(parents, TREE_NODES - 1)
    engine.forward([request])
    engine.compact([KeptPath(pages, len(prompt), path)])
    kept = prompt + [tree[node] for node in path]
    logits = engine.forward([chain([3, 4], len(kept), pages)])
    assert_close(logits, judge(theirs, [*kept, 3, 4])[-2:])


def check_bits(engine: Engine, request: TreeRequest, logits: torch.Tensor) -> None:
    """A row has the bits that it had in the batch: in its tree alone, and on its path alone."""
    assert torch.equal(engine.forward([request]), logits)
    path = path_to(request.parents, len(request.tokens) - 1)
    tokens = [request.tokens[node] for node in path]
    alone = engine.forward([chain(tokens, request.prefix_len, request.pages)])
    assert torch.equal(alone, logits[path])
