"""Pairs whose vocabularies differ: the text is the target's, whatever the draft's tokens are.

One server, and edges with drafts that write their text in other tokens, over real sockets. The
oracle is plain decoding in this process.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from runtime import ModelError
from runtime.config import EdgeConfig
from runtime.edge.client import Edge
from runtime.edge.net.link import ServerError
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from tests.edge.draft.vocabularies import BYTES, ORDER, ROWS, SPECIAL, byte_pairs, drafts, target
from tests.processes import running_server
from tests.test_lossless import plain_decoding

pytestmark = pytest.mark.usefixtures("eager")

TOKENS = 16
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "coupled": {"temperature": 1.5, "seed": 3},
    "uncoupled": {"temperature": 1.5, "seed": 4, "coupling": False},
}
PROMPTS = ("abcd ee 12 é🙂é abcdabcd", "<|start|>é\n\n12 12 12 abcd ab")


def resized(source: Path, folder: Path, order: list[int] | None = None) -> None:
    """The model with more rows, the first of them in another order."""
    model = LlamaForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(ROWS, mean_resizing=False)
    with torch.no_grad():
        for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
            weight[256:] = weight[: ROWS - 256]
            if order is not None:
                weight[: len(order)] = weight[order].clone()
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Pair:
    """Folders of a target and of a draft, a server of the target, and its engine here."""

    target: Path
    draft: Path
    server: str
    engine: Engine

    def joined(self, draft: Path, **options: object) -> Edge:
        shared = {"server": self.server, "tokenizer": str(self.target), "raw": True}
        return Edge(EdgeConfig(draft=str(draft), max_tokens=TOKENS, **shared, **options))

    def respelled(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
        """The draft with another tokenizer."""
        shutil.copytree(self.draft, folder, dirs_exist_ok=True)
        tokenizer.save_pretrained(folder)
        return folder

    def plain(self, edge: Edge, prompt: str, temperature: float = 0.0, seed: int = 0) -> list[int]:
        stops = tuple(Tokenizer.load(self.target).stop_ids)
        sampling = Sampling(TOKENS, temperature=temperature, seed=seed, stop_ids=stops)
        return plain_decoding(self.engine, edge.encode(prompt), sampling)


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    big, small = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("draft")
    for source, folder in zip(tiny_pair, (big, small), strict=True):
        resized(source, folder)
        target().save_pretrained(folder)
    options = ["--port", "0", "--threads", "1", "--kv-tokens", "8192", "--no-pipeline"]
    with running_server("--model", str(big), *options) as server:
        engine = open_engine(str(big), "float32", "cpu", lambda _: 1024, 16)
        yield Pair(big, small, server, engine)


def texts(pair: Pair, draft: Path) -> Mapping[str, float]:
    """Tokens a verification by kind of sampling, where all texts are plain."""
    rates = {}
    with pair.joined(draft) as edge:
        for kind, options in SAMPLINGS.items():
            plain = {name: options[name] for name in ("temperature", "seed") if name in options}
            for prompt in PROMPTS:
                answer = edge.generate(prompt, **options)
                assert answer.text is not None
                assert answer.tokens == pair.plain(edge, prompt, **plain)
                rates[kind] = max(rates.get(kind, 0.0), answer.statistics.tokens_per_verification)
    return rates


@pytest.mark.parametrize("name", drafts())
def test_the_text_is_plain_whatever_the_drafts_tokens_are(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    if name == "permuted":
        resized(pair.draft, tmp_path, ORDER)
        drafts()[name].save_pretrained(tmp_path)
    else:
        pair.respelled(drafts()[name], tmp_path)
    rates = texts(pair, tmp_path)
    if name == "permuted":
        assert rates["greedy"] == texts(pair, pair.draft)["greedy"] > 1.2
    assert max(rates.values()) > 1, "nothing is accepted"


def test_a_tokenizer_that_makes_nothing_of_a_text_costs_only_drafts(
    pair: Pair, tmp_path: Path
) -> None:
    tokenizer = byte_pairs(BYTES, [], ("<s>",))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"[\s\S]"), "")
    texts(pair, pair.respelled(tokenizer, tmp_path))


def test_a_draft_that_has_no_piece_of_the_target_is_refused(pair: Pair, tmp_path: Path) -> None:
    tokenizer = byte_pairs(["ѣ", "ѫ"], [], ("<s>",))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    told = pytest.raises(ModelError, match="have no piece of text in common; use a draft of")
    with told, pair.joined(pair.respelled(tokenizer, tmp_path)):
        pass


def test_a_tokenizer_that_is_not_the_targets_is_refused_by_name(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    byte_pairs(BYTES, [], SPECIAL).save_pretrained(other)
    for draft, named in (
        (str(pair.draft), f"'{pair.draft.name}, tokenizer of other' (258 tokens)"),
        ("none", "'no draft model, tokenizer of other' (258 tokens)"),
    ):
        config = EdgeConfig(server=pair.server, draft=draft, tokenizer=str(other))
        with pytest.raises(ServerError) as told, Edge(config):
            pass
        assert f"{named} and the target '{pair.target.name}'" in str(told.value)
        assert "name the target's tokenizer with --tokenizer" in str(told.value)
