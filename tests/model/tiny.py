"""Small random models of every family, made and judged by transformers, and how we run them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.model.engine import Engine, PagedKV, TreeRequest
from runtime.model.transformer import Transformer

VOCAB = 120
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
WINDOWED_QWEN2 = {
    "model_type": "qwen2",
    "num_hidden_layers": 3,
    "use_sliding_window": True,
    "sliding_window": 6,
    "max_window_layers": 1,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
MODELS = {
    "llama": {"model_type": "llama", "head_dim": 16},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 24, "num_key_value_heads": 4},
    "llama3-rope": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "linear-rope": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": WINDOWED_QWEN2,
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 1},
    "qwen3-biases": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "qwen3-yarn": {"model_type": "qwen3", "head_dim": 16, "rope_parameters": YARN_ROPE},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2},
    "mixtral-window": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 7},
    "qwen2-moe": {"model_type": "qwen2_moe", **EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen2-moe-normalised": {
        **{"model_type": "qwen2_moe", **EXPERTS, "norm_topk_prob": True, "qkv_bias": False},
        **{"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        "shared_expert_intermediate_size": 24,
    },
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS, "norm_topk_prob": True},
    "qwen3-moe-window": {
        **{"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS, "attention_bias": True},
        **{"use_sliding_window": True, "sliding_window": 6},
    },
    "mistral-window": {"model_type": "mistral", "sliding_window": 7},
}


def huggingface_model(name: str) -> torch.nn.Module:
    """A random model, its norms and biases not the trivial ones that transformers starts with."""
    torch.manual_seed(sorted(MODELS).index(name))
    config = AutoConfig.for_model(**{**SIZES, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def save(model: torch.nn.Module, folder: Path, shard_size: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


@torch.no_grad()
def judge(model: torch.nn.Module, tokens: Sequence[int]) -> Tensor:
    """transformers' logits after every token, [len(tokens), V]."""
    return model(torch.tensor([list(tokens)])).logits[0].float()


def engine_of(
    model: Transformer, n_pages: int = 64, page_size: int = 4, dtype: torch.dtype = torch.float32
) -> Engine:
    return Engine(model, PagedKV(model.kv_shapes, n_pages, page_size, dtype))


def chain(
    tokens: Sequence[int], prefix_len: int, pages: Sequence[int], all_logits: bool = True
) -> TreeRequest:
    """A prompt chunk, or a decode step."""
    n = len(tokens)
    rows = range(n) if all_logits else [n - 1]
    return TreeRequest(tokens, range(-1, n - 1), prefix_len, pages, rows)


def path_to(parents: Sequence[int], node: int) -> list[int]:
    """Node indices from under the prefix down to `node`."""
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def random_tree(n: int, generator: torch.Generator) -> list[int]:
    """Parents of n nodes: several roots, branches and chains."""
    draws = torch.rand(n, generator=generator).tolist()
    return [max(-1, node - 1 - int(draw * 4)) for node, draw in enumerate(draws)]


def random_tokens(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=generator).tolist()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """The largest error of a row, relative to the row's largest logit."""
    error = (ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)
    assert error.max() < tolerance, f"relative error {error.max():.2e} in row {error.argmax()}"
