"""What several test files share: a tiny model pair on disk, and a server process for it."""

import os

# Before torch is imported anywhere: idle threads of several processes must not fight for cores.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SPECEDGE_HTTP", "127.0.0.1:0")  # several servers run beside each other

# The workers of pytest-xdist share the cores; a test of threads asks for them itself.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from runtime.edge.draft.drafter import Drafter

# Every run tries the same cases, however slow the machine is.
settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `every_value`, mark as long what shows no further value of a parameter."""
    marked = [item for item in items if item.get_closest_marker("every_value")]
    for _, cases in groupby(marked, key=lambda item: item.nodeid.partition("[")[0]):
        values = {
            item: {(name, repr(value)) for name, value in item.callspec.params.items()}
            for item in cases
        }
        unseen = set().union(*values.values())
        while values:
            case = max(values, key=lambda item: len(values[item] & unseen))
            if not values[case] & unseen:
                break
            unseen -= values.pop(case)
        for item in values:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def of_all_workers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], AbstractContextManager[Path]]:
    """A function from a name to a folder that all workers of this run share, one at a time."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    @contextmanager
    def alone_in(name: str) -> Iterator[Path]:
        folder = base / name
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder

    return alone_in


CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a random target and of a draft that agrees with it often, but not always."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.25,
        eos_token_id=257,
        bos_token_id=256,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # ties go to the lowest id, so greedy text never has a special token and runs to its end
        model.lm_head.weight[256:] = model.lm_head.weight[0]
    target, draft = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("draft")
    tokenizer = byte_tokenizer()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    return target, draft


@pytest.fixture(scope="module")
def drafter(tiny_pair: tuple[Path, Path]) -> "Drafter":
    """Of the pair's draft model, with a cache of 1024 tokens."""
    from runtime.edge.draft.drafter import Drafter
    from runtime.model.open import open_engine

    return Drafter(open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 1024, 16))


def byte_tokenizer(extra: tuple[str, ...] = ("<|start|>", "<|end|>")):
    """One token per byte, then the special ones; the models have two rows more than that."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in extra])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=extra[1], chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="session")
def tiny_server(tiny_pair: tuple[Path, Path]) -> Iterator[str]:
    """host:port of a server process with the tiny target, small enough to fill up."""
    from tests.processes import running_server

    options = ["--model", str(tiny_pair[0]), "--port", "0", "--threads", "1"]
    limits = ["--kv-tokens", "8192", "--max-step-nodes", "300", "--chunk-tokens", "24"]
    # without the pipeline every edge always has the turn: what is tested does not depend on speed
    with running_server(*options, *limits, "--no-pipeline", "--credits", "open") as address:
        yield address


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges in this process draft as much as they can: how fast the machine is plays no part."""
    from runtime.edge.draft.pace import Pace

    monkeypatch.setattr(Pace, "fits_ahead", lambda pace, waited_s: True)
    monkeypatch.setattr(Pace, "is_worth_a_pass", lambda pace, tokens, gain, *times: gain > 0)
