"""Every family of published.json: logits as transformers has them, or a refusal in a sentence."""

import json

import pytest
import torch

from runtime.model.config import ModelError
from runtime.model.engine import Engine, KeptPath, TreeRequest
from runtime.model.open import open_engine
from tests.model.families import table
from tests.model.families.small import FAMILIES, cut, save
from tests.model.tiny import assert_close, chain, judge, path_to, random_tokens, random_tree

PROMPT_TOKENS, CHUNK, TREE_NODES = 27, 10, 20
RUN = [name for name, family in FAMILIES.items() if family.refused is None]
REFUSED = [name for name, family in FAMILIES.items() if family.refused is not None]
# Behind a text that is judged. Some families turn positions otherwise in texts beyond a length,
# here 16 tokens; ours are turned as in long ones throughout.
MORE = [7] * 20


@pytest.mark.parametrize("name", RUN)
def test_logits_are_those_of_transformers(name, tmp_path, generator):
    """A prompt in two chunks, the second beside another prompt; a tree; the text that was kept.

    The windows of the small models hold 8 tokens, and scaled positions were trained up to 16, so
    the tree's nodes lie beyond both.
    """
    theirs = save(FAMILIES[name], tmp_path)
    engine = opened(tmp_path)
    prompt, other = random_tokens(PROMPT_TOKENS, generator), random_tokens(7, generator)
    pages, others = engine.kv.allocate(16), engine.kv.allocate(4)
    first = engine.forward([chain(prompt[:CHUNK], 0, pages)])
    both = engine.forward([chain(prompt[CHUNK:], CHUNK, pages), chain(other, 0, others)])
    logits = torch.cat((first, both))
    assert_judged(theirs, prompt, logits[:PROMPT_TOKENS])
    assert_judged(theirs, other, logits[PROMPT_TOKENS:])

    tree, parents = random_tokens(TREE_NODES, generator), random_tree(TREE_NODES, generator)
    step = TreeRequest([5], [-1], len(other), others, [0])
    request = TreeRequest(tree, parents, len(prompt), pages, range(TREE_NODES))
    logits = engine.forward([step, request])
    assert_judged(theirs, [*other, 5], logits[:1])
    for leaf in set(range(TREE_NODES)) - set(parents):
        path = path_to(parents, leaf)
        assert_judged(theirs, prompt + [tree[node] for node in path], logits[1:][path])
    assert_same_bits(engine, request, logits[1:])

    path = path_to(parents, TREE_NODES - 1)
    engine.forward([request])
    engine.compact([KeptPath(pages, len(prompt), path)])
    kept = prompt + [tree[node] for node in path]
    assert_judged(theirs, [*kept, 3, 4], engine.forward([chain([3, 4], len(kept), pages)]))


def opened(folder) -> Engine:
    return open_engine(str(folder), "stored", "cpu", lambda model: 256, 4)


def assert_judged(theirs: torch.nn.Module, tokens: list[int], logits: torch.Tensor) -> None:
    """Logits of the last tokens of a text."""
    assert_close(logits, judge(theirs, [*tokens, *MORE])[: len(tokens)][-len(logits) :])


def assert_same_bits(engine: Engine, request: TreeRequest, logits: torch.Tensor) -> None:
    """A row has the bits that it had in the batch: in its tree alone, and on its path alone."""
    assert torch.equal(engine.forward([request]), logits)
    path = path_to(request.parents, len(request.tokens) - 1)
    tokens = [request.tokens[node] for node in path]
    alone = engine.forward([chain(tokens, request.prefix_len, request.pages)])
    assert torch.equal(alone, logits[path])


@pytest.mark.parametrize(
    ("name", "field", "longest"),
    [
        ("llama-4", "attention_chunk_size", 40),
        ("llama-4", "floor_scale", 39),
        ("phi-3.5-moe", "sliding_window", 40),
    ],
)
def test_texts_end_where_a_tree_could_not_follow(name, field, longest, tmp_path, generator):
    """Llama 4's chunks and growing queries, and a window that is known to the mask alone."""
    save(FAMILIES[name], tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {field: 40}))
    engine = opened(tmp_path)
    assert engine.model.max_context == longest
    with pytest.raises(ValueError, match=f"longer than the model's context of {longest}"):
        engine.forward([chain(random_tokens(longest + 1, generator), 0, range(16))])


@pytest.mark.parametrize("name", ["gemma-3n", "gemma-4-e"])
def test_shared_keys_and_values_are_kept_once(name, tmp_path):
    """Of ten layers the last five read what earlier ones keep."""
    save(FAMILIES[name], tmp_path)
    assert len(opened(tmp_path).model.kv_shapes) == 5


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_by_its_configuration(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(cut(FAMILIES[name])))
    with pytest.raises(ModelError, match=FAMILIES[name].refused) as refusal:
        opened(tmp_path)
    assert "\n" not in str(refusal.value)


def test_the_table_is_the_one_in_the_docs():
    assert table.page() == table.PAGE.read_text(), "run python -m tests.model.families.table"
