"""Adapters from the file to the text: each answer is plain decoding with its own, or with none.

The oracle runs the same adapters by itself, one token a pass; that it means what their files mean
is shown against a model with W + s B A in place of W.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import LlamaForCausalLM

from runtime import Edge, EdgeConfig, Server, ServerConfig
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import TreeShape
from runtime.edge.loop import Drafting
from runtime.edge.net.link import ServerError
from runtime.edge.net.uplink import Uplink
from runtime.edge.resume import Transcript, resuming
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.wire.messages import ErrorCode
from tests.faults.proxy import Fault, Kind, Proxy
from tests.faults.rig import Rig
from tests.model.adapters import EVERYTHING, by_alpha, merged, random_pairs, save_folder
from tests.server.in_loop import run, serving
from tests.test_lossless import plain_decoding

pytestmark = pytest.mark.usefixtures("eager")

STOPS = (257,)
NAMES = (None, "soft", "loud")
PROMPT = [(7 * i) % 250 for i in range(50)]  # three pages, which nobody may share
GREEDY, SAMPLED = Sampling(40, stop_ids=STOPS), Sampling(40, 1.0, seed=4, stop_ids=STOPS)
TOKENS = {"alice": "a" * 40, "bob": "b" * 40}


@pytest.fixture(scope="module")
def given(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], dict[str, Path]]:
    """What --adapter is given, and the folders of the models that mean the same, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    base = LlamaForCausalLM.from_pretrained(tiny_pair[0])
    options, whole = [], {}
    for seed, (name, parts) in enumerate(
        {"soft": ("q_proj", "v_proj"), "loud": EVERYTHING}.items()
    ):
        pairs = random_pairs(base, parts, 4, seed, size=0.15)
        options.append(f"{name}={save_folder(folder / name, pairs)}")
        whole[name] = folder / f"whole-{name}"
        merged(base, pairs, by_alpha(pairs, 8)).save_pretrained(whole[name])
    return tuple(options), whole


@pytest.fixture(scope="module")
def engine(tiny_pair: tuple[Path, Path], given: Any) -> Engine:
    adapters = ServerConfig(adapter=given[0]).adapters
    return open_engine(str(tiny_pair[0]), "stored", "cpu", lambda model: 512, 16, adapters=adapters)


@pytest.fixture(scope="module")
def plain(engine: Engine) -> Callable[..., list[int]]:
    """Plain decoding of a prompt, every text once."""
    known: dict[Any, list[int]] = {}

    def text(sampling: Sampling, adapter: str | None, prompt: Sequence[int] = PROMPT) -> list[int]:
        key = sampling, adapter, tuple(prompt)
        if key not in known:
            known[key] = plain_decoding(engine, prompt, replace(sampling, adapter=adapter))
        return known[key]

    return text


@pytest.fixture(scope="module")
def server(
    tiny_pair: tuple[Path, Path], given: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    users = tmp_path_factory.mktemp("users") / "users.toml"
    users.write_text("".join(f'{name} = "{token}"\n' for name, token in TOKENS.items()))
    users.chmod(0o600)
    for name, token in TOKENS.items():
        users.with_name(name).write_text(token)
        users.with_name(name).chmod(0o600)
    config = ServerConfig(
        **{"model": str(tiny_pair[0]), "port": 0, "http": "", "openai": "127.0.0.1:0"},
        **{"users": str(users), "user_adapter": ("bob=loud",), "adapter": given[0]},
        **{"threads": 1, "kv_tokens": 8192, "chunk_tokens": 24, "pipeline": False},
    )
    with Server(config) as server:
        yield server


def edge(server: Server, draft: Path, user: str) -> Edge:
    token_file = str(Path(server.config.users).with_name(user))
    who = {"user": user, "token_file": token_file}
    return Edge(EdgeConfig(server=server.address, draft=str(draft), raw=True, max_tokens=40, **who))


def test_the_oracle_means_what_the_files_mean(plain: Any, given: Any) -> None:
    for name, folder in given[1].items():
        alone = open_engine(str(folder), "stored", "cpu", lambda model: 512, 16)
        for sampling in (GREEDY, SAMPLED):
            assert plain(sampling, name) == plain_decoding(alone, PROMPT, sampling)
    assert len({tuple(plain(GREEDY, name)) for name in NAMES}) == 3


def test_text_of_two_adapters_and_none_in_one_batch(
    server: Server, tiny_pair: tuple[Path, Path], plain: Any
) -> None:
    """Twice, so that the second time every prompt is in the prefix cache, three times over."""
    jobs = [(sampling, name) for sampling in (GREEDY, SAMPLED) for name in NAMES]
    accepted = []
    with edge(server, tiny_pair[1], "alice") as drafting:
        for _ in range(2):
            answers = [
                drafting.generate(
                    PROMPT, adapter=name, temperature=sampling.temperature, seed=sampling.seed
                )
                for sampling, name in jobs
            ]
            for answer, (sampling, name) in zip(answers, jobs, strict=True):
                assert answer.text is not None
                assert answer.tokens == plain(sampling, name)
                accepted.append(answer.statistics.tokens_per_verification)
        assert drafting.adapters == ("soft", "loud")
    assert max(accepted) > 1.1, "nothing is accepted"


def test_a_user_has_an_adapter_and_unknown_ones_are_refused(
    server: Server, tiny_pair: tuple[Path, Path], plain: Any
) -> None:
    with edge(server, tiny_pair[1], "bob") as bob:
        assert bob.generate(PROMPT).text is not None
        answer = bob.generate(PROMPT)
        assert [answer.text is not None, answer.tokens] == [True, plain(GREEDY, "loud")]
        other = bob.generate(PROMPT, adapter="soft")
        assert [other.text is not None, other.tokens] == [True, plain(GREEDY, "soft")]
        with pytest.raises(ServerError, match="no adapter 'nobody' here; it has soft, loud") as no:
            _ = bob.generate(PROMPT, adapter="nobody").text
        assert no.value.code is ErrorCode.ADAPTER
        assert bob.generate(PROMPT, max_tokens=3).text is not None


def test_clients_ask_for_an_adapter_by_a_models_name(server: Server, plain: Any) -> None:
    whole, show = Path(server.config.model).name, Tokenizer.load(server.config.model).decode
    with openai.OpenAI(base_url=server.openai_url, api_key=TOKENS["alice"]) as client:
        listed = client.models.list().data
        assert [model.id for model in listed] == [whole, "soft", "loud"]
        assert [getattr(model, "parent", None) for model in listed] == [None, whole, whole]
        assert client.models.retrieve("soft").id == "soft"
        for model, name in ((whole, None), ("soft", "soft"), (f"{whole}:loud", "loud")):
            asked = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}
            answer = client.completions.create(model=model, **asked)
            assert answer.model == model
            assert answer.choices[0].text == show(plain(GREEDY, name))
        with pytest.raises(openai.NotFoundError, match="with the adapters soft, loud"):
            client.completions.create(model=f"{whole}:nobody", prompt="x")


def test_preempted_requests_go_on_with_their_adapters(
    tiny_pair: tuple[Path, Path], given: Any, plain: Any
) -> None:
    """The pool holds two of the nine texts."""

    async def scenario() -> None:
        options = {"kv_tokens": 208, "max_nodes": 0, "max_step_nodes": 32, "chunk_tokens": 16}
        async with serving(tiny_pair[0], adapter=given[0], **options) as it:
            local, jobs = it.edge(), [(s, n) for s in (GREEDY, SAMPLED) for n in NAMES]
            answers = [
                local.generate(
                    PROMPT[:20], raw=True, max_tokens=40, adapter=name,
                    temperature=sampling.temperature, seed=sampling.seed,
                )
                for sampling, name in jobs
            ]  # fmt: skip
            for answer, (sampling, name) in zip(answers, jobs, strict=True):
                assert await answer.text is not None
                assert answer.tokens == plain(sampling, name, PROMPT[:20])
            assert it.server.scheduler.preemptions, "nobody was preempted: this shows nothing"

    run(scenario)


@pytest.mark.parametrize("at_byte", [330, 460])
def test_an_answer_over_a_cut_link_keeps_its_adapter(
    tiny_pair: tuple[Path, Path], given: Any, plain: Any, at_byte: int
) -> None:
    async def scenario() -> None:
        rig, proxy = Rig(tiny_pair[0], adapter=given[0]), Proxy([Fault(Kind.RESET, False, at_byte)])
        await rig.start()
        draft = open_engine(str(tiny_pair[1]), "stored", "cpu", lambda model: 512, 16)
        batcher = Batcher(Drafter(draft))
        answer = Transcript(list(PROMPT), replace(SAMPLED, adapter="loud"))
        async with proxy.before("127.0.0.1", rig.port):
            uplink = Uplink(*proxy.address, rig.hello)
            going = resuming(uplink, batcher, answer, Drafting(TreeShape(8, 3, 3, 3)), 30.0)
            async with aclosing(going) as rounds:
                before = [len(answer.accepted) async for _ in rounds if uplink.opened == 1]
            await uplink.close()
        await batcher.close()
        await rig.kill()
        assert uplink.opened == 2
        assert 0 < max(before, default=0) < 40
        assert answer.accepted == plain(SAMPLED, "loud")

    asyncio.run(scenario())
