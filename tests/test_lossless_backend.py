"""Text of models that transformers' modules run, through server and edge: that of plain decoding.

The target of gpt-oss's kind has sinks, windows, experts and a router; the draft is the same model
disturbed, or one of another family. Real sockets.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runtime.config import EdgeConfig
from runtime.edge.client import Edge
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from tests.conftest import byte_tokenizer
from tests.processes import running_server
from tests.test_lossless import plain_decoding

SIZES = {
    **{"vocab_size": 260, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 12},
    **{"max_position_embeddings": 1024, "initializer_range": 0.2, "pad_token_id": 0},
    **{"eos_token_id": 257, "bos_token_id": 256, "tie_word_embeddings": False},
}
TARGET = {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}
DRAFT_OF_ANOTHER_FAMILY = {"model_type": "gemma2", "query_pre_attn_scalar": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import AutoConfig, AutoModelForCausalLM

    folders = {name: tmp_path_factory.mktemp(name) for name in ("target", "disturbed", "gemma")}
    torch.manual_seed(5)
    plain_rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    config = AutoConfig.for_model(**SIZES, **TARGET, **plain_rope)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folders["target"])
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.std() * torch.randn_like(weight)
    model.save_pretrained(folders["disturbed"])
    other = AutoConfig.for_model(**SIZES, **DRAFT_OF_ANOTHER_FAMILY)
    AutoModelForCausalLM.from_config(other, dtype=torch.float32).save_pretrained(folders["gemma"])
    for folder in folders.values():
        byte_tokenizer().save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[str]:
    options = ["--port", "0", "--threads", "1", "--kv-tokens", "4096", "--no-pipeline"]
    with running_server("--model", str(folders["target"]), *options) as address:
        yield address


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("draft", "coupling"), [("disturbed", True), ("disturbed", False), ("gemma", True)]
)
def test_the_text_is_plain(
    folders: dict[str, Path], server: str, draft: str, coupling: bool
) -> None:
    engine = open_engine(str(folders["target"]), "stored", "cpu", lambda _: 1024, 16)
    stop_ids = tuple(Tokenizer.load(folders["target"]).stop_ids)
    accepted = []
    options = {"server": server, "draft": str(folders[draft]), "max_tokens": 24, "raw": True}
    with Edge(EdgeConfig(**options, coupling=coupling)) as edge:
        for seed, temperature in enumerate((0.0, 0.5, 1.2)):
            answer = edge.generate("A short prompt", seed=seed, temperature=temperature)
            assert answer.text
            sampling = Sampling(24, temperature=temperature, seed=seed, stop_ids=stop_ids)
            assert answer.tokens == plain_decoding(engine, edge.encode("A short prompt"), sampling)
            accepted.append(answer.statistics.tokens_per_verification)
    if draft == "disturbed":
        assert max(accepted) > 1.2, "nothing is accepted: no test"
