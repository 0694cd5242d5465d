"""A server whose model several processes share, started by torchrun, and edges that ask it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from runtime import Edge, EdgeConfig, TokenLogprob
from runtime.config import ConfigError, ServerConfig
from runtime.demo import running_server, server_process
from runtime.model.config import ModelError
from runtime.model.open import open_engine
from runtime.model.parallel import LeaderTells, RankLost
from runtime.sampling import Sampling
from runtime.server.__main__ import main
from runtime.server.together import join, speaks
from tests.model.adapters import EVERYTHING, by_alpha, merged, random_pairs, save_folder
from tests.ports import kept_port
from tests.test_lossless import plain_decoding

LIMITS = ("--kv-tokens", "8192", "--max-step-nodes", "300", "--chunk-tokens", "24")
# as many prompts as are wanted of a longer run; a few show it
STOPS = (257,)  # of the tiny pair
PROMPTS = int(os.environ.get("SPECEDGE_TEST_PROMPTS", "4"))
HOW = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    {"temperature": 1.0, "frequency_penalty": 0.5, "logprobs": 3},
)


@contextmanager
def ranks(n: int, target: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    launcher = ["--standalone", "--nproc-per-node", str(n), "-m", "runtime.server"]
    # a busy machine may hold up a process for long; one that is killed is noticed at once
    patient = ["--threads", "1", "--rank-silence-s", "60"]
    command = [*launcher, "--model", str(target), "--port", "0", *patient, *LIMITS]
    with server_process(*command, *options, module="torch.distributed.run") as started:
        yield started


Answered = tuple[str, list[TokenLogprob]]


def answers_of(address: str, draft: Path) -> list[Answered]:
    """Text and log-probabilities of each prompt, drafted for and plain; one prompt at a time."""
    with Edge(EdgeConfig(server=address, draft=str(draft), threads=1)) as edge:
        return [one for number in range(PROMPTS) for one in answers_to(number, edge)]


def answers_to(number: int, edge: Edge) -> list[Answered]:
    """All at once."""
    prompt = f"{number} prompt " + "x" * (number % 5) * 9
    answers = [
        edge.generate(prompt, max_tokens=24, max_budget=budget, seed=number, **how)
        for how in HOW
        for budget in (32, 0)
    ]
    return [(answer.text, answer.logprobs) for answer in answers]


def texts(answers: list[Answered]) -> list[str]:
    return [text for text, _ in answers]


def test_text_of_four_ranks_is_that_of_one_process(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    """More ranks than key/value heads; and a drafted text is the plain one."""
    target, draft = tiny_pair
    with ranks(4, target, "--no-pipeline", "--credits", "open") as (address, _):
        got = answers_of(address, draft)
    expected = answers_of(tiny_server, draft)
    assert got == expected
    assert texts(got)[::2] == texts(got)[1::2]
    assert sum(len(told) == 24 for _, told in got) == len(got) // len(HOW)


def test_an_adapter_that_ranks_share_gives_the_text_of_the_merged_weights(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """And beside it a request without one has the base model's."""
    target, draft = tiny_pair
    base = LlamaForCausalLM.from_pretrained(target)
    pairs = random_pairs(base, EVERYTHING, 4, seed=1, size=0.15)
    option = f"one={save_folder(tmp_path / 'one', pairs)}"
    merged(base, pairs, by_alpha(pairs, 8)).save_pretrained(tmp_path / "whole")
    prompt, greedy = [3, 1, 4, 1, 5, 9, 2, 6], Sampling(24, stop_ids=STOPS)
    with ranks(2, target, "--adapter", option) as (address, _):
        config = EdgeConfig(server=address, draft=str(draft), raw=True, threads=1, max_tokens=24)
        with Edge(config) as edge:
            answers = [edge.generate(prompt, adapter=adapter) for adapter in ("one", None)]
            texts = [answer.text is not None and answer.tokens for answer in answers]
    for folder, tokens in zip((tmp_path / "whole", target), texts, strict=True):
        engine = open_engine(str(folder), "stored", "cpu", lambda _: 512, 16)
        assert tokens == plain_decoding(engine, prompt, greedy)
    assert texts[0] != texts[1]


def test_edges_go_on_where_a_rank_has_died(
    tiny_pair: tuple[Path, Path], tiny_server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    target, draft = tiny_pair
    asked = {"max_tokens": 400, "temperature": 1.0, "seed": 9}
    with kept_port() as port, ranks(2, target, "--port", f"{port}") as (address, torchrun):
        two = answers_of(address, draft)
        with Edge(EdgeConfig(server=address, draft=str(draft), threads=1)) as edge:
            answer = edge.generate("a long one", **asked)
            pieces_so_far = iter(answer)
            begun = str(next(pieces_so_far))
            os.kill(_rank(torchrun.pid, 1), signal.SIGKILL)
            assert torchrun.wait(120) != 0
            again = ["--model", str(target), "--threads", "1", "--port", address.split(":")[1]]
            with running_server(*again, *LIMITS):
                whole = begun + "".join(map(str, pieces_so_far))
    with Edge(EdgeConfig(server=tiny_server, draft=str(draft), threads=1)) as edge:
        assert whole == edge.generate("a long one", **asked).text
    assert two == answers_of(tiny_server, draft)
    assert "one of the 2 ranks has ended" in capfd.readouterr().err


def _rank(torchrun: int, rank: int) -> int:
    """The process of a rank."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    (found,) = (
        int(child)
        for child in children
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text()
    )
    return found


ENV = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


def test_one_process_is_alone_whatever_its_environment_holds() -> None:
    assert join(ServerConfig(), {}) is None
    assert join(ServerConfig(), {"WORLD_SIZE": "4", "RANK": "1"}) is None
    assert join(ServerConfig(), {**ENV, "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("option", [{"redirect": "a:1"}, {"add_user": "ann", "users": "u"}])
def test_what_ranks_have_no_use_for(option: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="leave torchrun out"):
        join(ServerConfig(**option), ENV)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "4", "LOCAL_RANK": "0"}, True),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "1", "LOCAL_RANK": "1"}, True),  # not torchrun's
        ({}, True),
    ],
)
def test_a_wrong_option_is_told_once_a_machine(
    env: dict[str, str],
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["runtime.server", "--port", "99999"])
    assert main() == 2
    assert capsys.readouterr().err.count("--port is 99999") == told


def test_one_rank_tells_what_all_have_met() -> None:
    at = [{**ENV, "RANK": str(rank)} for rank in range(3)]
    assert [speaks(ConfigError("x"), env) for env in at] == [True, False, False]
    assert [speaks(LeaderTells(), env) for env in at] == [True, False, False]
    assert [speaks(RankLost("x"), env) for env in at] == [True, True, False]
    assert [speaks(ModelError("x"), env) for env in at] == [True, True, True]
