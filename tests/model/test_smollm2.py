"""The embedded target with its real weights against transformers; skipped where it is missing."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from runtime import embedded
from runtime.model import weights
from runtime.model.engine import Engine, KeptPath, PagedKV, TreeRequest
from runtime.model.gguf import GgufFile, Metadata
from runtime.model.tokenizer import Tokenizer
from specedge_kernels import dequantize
from tests.model.tiny import assert_close, chain, judge, path_to

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>user\nWhy is the sky blue? 🌤<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def checkpoint():
    try:
        return GgufFile(embedded.target_path())
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """transformers' llama over the dequantised tensors, configured from SmolLM2's model card."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {name: checkpoint.read(name) for name in checkpoint.shapes}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.fixture(scope="module")
def engine(checkpoint):
    model = weights.load("smollm2", activations="exact")
    return Engine(model, PagedKV(model.kv_shapes, 64, 16, torch.float32))


@pytest.fixture(scope="module")
def prompts(checkpoint):
    tokenizer = Tokenizer.load("smollm2")
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def test_logits(engine, theirs, prompts):
    pages = [engine.kv.allocate(4) for _ in prompts]
    requests = [chain(tokens, 0, own) for tokens, own in zip(prompts, pages, strict=True)]
    expected = torch.cat([judge(theirs, tokens) for tokens in prompts])
    assert_close(engine.forward(requests), expected)
    engine.kv.free(page for own in pages for page in own)


def test_tree_then_compaction_then_decoding(engine, theirs, prompts):
    prompt, pages = prompts[0], engine.kv.allocate(4)
    engine.forward([chain(prompt, 0, pages, all_logits=False)])
    tree, parents, path = [7042, 260, 253, 28, 30], [-1, 0, 0, 1, 2], [0, 2, 4]
    logits = engine.forward([TreeRequest(tree, parents, len(prompt), pages, range(5))])
    texts = [prompt + [tree[i] for i in path_to(parents, node)] for node in range(5)]
    assert_close(logits, torch.stack([judge(theirs, text)[-1] for text in texts]))
    engine.compact([KeptPath(pages, len(prompt), path)])
    after = engine.forward([chain([198], len(prompt) + 3, pages)])
    assert_close(after, judge(theirs, [*texts[4], 198])[-1:])
    engine.kv.free(pages)


def test_embedded_draft_shares_the_targets_embedding(engine):
    """The draft is distilled to agree with the target, so it must do so more than by chance."""
    if not embedded.DRAFT_WEIGHTS.is_file():
        pytest.skip(f"{embedded.DRAFT_WEIGHTS.name} was not built")
    model = weights.load("smollm2-draft")
    draft = Engine(model, PagedKV(model.kv_shapes, 8, 16, torch.float32))
    assert model.head_ids.tolist() == sorted(set(model.head_ids.tolist()))
    ids = torch.arange(100, 200)
    shared = dequantize(model.embedding.rows[ids], model.embedding.kind)
    assert torch.equal(shared, engine.model.head.rows(ids))
    question = [{"role": "user", "content": "What is the capital of France, and why?"}]
    request = chain(Tokenizer.load("smollm2").chat_prompt(question), 0, range(8))
    likeliest = engine.forward([request]).argmax(-1)
    drafted = model.head_ids[draft.forward([request]).argmax(-1)]
    assert (drafted == likeliest).float().mean() > 0.2


def test_dequantisation_of_a_rotary_weight_by_hand(checkpoint):
    """Q4_1: blocks of 32 share a scale and a minimum; rows lie in pairs that turn together."""
    header = Metadata(embedded.target_path()).header
    info = next(t for t in header.tensors if t.name == "blk.3.attn_k.weight")
    raw = np.memmap(
        embedded.target_path(), mode="r", offset=header.data_start + info.offset,
        shape=(192 * 18, 20), dtype=np.uint8,
    )  # fmt: skip
    scale, least = (raw[:, i : i + 2].copy().view(np.float16).astype(float) for i in (0, 2))
    values = np.concatenate((raw[:, 4:] & 15, raw[:, 4:] >> 4), axis=1) * scale + least
    heads = values.reshape(3, 32, 2, 576)
    ours = checkpoint.read("model.layers.3.self_attn.k_proj.weight").view(3, 2, 32, 576)
    torch.testing.assert_close(ours.double(), torch.from_numpy(heads.swapaxes(1, 2).copy()))
