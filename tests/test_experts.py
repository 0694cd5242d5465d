"""A server of a mixture of experts, and an edge that drafts with another: text is plain."""

from pathlib import Path

import pytest

from runtime.config import EdgeConfig
from runtime.edge.client import Edge
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from tests.conftest import byte_tokenizer
from tests.processes import running_server
from tests.test_lossless import plain_decoding


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random target, and the same with noise on its weights as its draft."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        initializer_range=0.25,
        eos_token_id=257,
    )
    model = Qwen3MoeForCausalLM(config)
    folders = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("draft")
    for folder in folders:
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * weight.std() * torch.randn_like(weight)
    return folders


@pytest.mark.usefixtures("eager")
def test_text_of_a_mixture_of_experts_is_that_of_plain_decoding(pair: tuple[Path, Path]) -> None:
    (target, draft), weights = pair, "q8_0"
    engine = open_engine(str(target), weights, "cpu", lambda model: 512, 16)
    stops = tuple(Tokenizer.load(target).stop_ids)
    options = ["--model", str(target), "--weights", weights, "--port", "0", "--threads", "1"]
    accepted = []
    with (
        running_server(*options, "--kv-tokens", "2048", "--no-pipeline") as server,
        Edge(EdgeConfig(server=server, draft=str(draft), raw=True, max_tokens=40)) as edge,
    ):
        for temperature in (0.0, 1.0):
            answer = edge.generate("experts", temperature=temperature, seed=3)
            assert answer.text is not None
            sampling = Sampling(40, temperature=temperature, seed=3, stop_ids=stops)
            want = plain_decoding(engine, edge.encode("experts"), sampling)
            assert answer.tokens == want
            accepted.append(answer.statistics.tokens_per_verification)
    assert max(accepted) > 1.1, "nothing is accepted"
