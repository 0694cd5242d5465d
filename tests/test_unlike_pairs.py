"""Pairs of one family that are not alike: more rows or fewer, another chat template, other stops.

Two servers of one target, padded to different sizes, and drafts for them; real sockets.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from runtime.config import ConfigError, EdgeConfig
from runtime.edge.__main__ import main
from runtime.edge.client import Edge
from runtime.edge.net.link import ServerError
from runtime.edge.resume import Transcript
from runtime.edge.resume_file import save
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.wire import messages as wire
from tests.conftest import CHAT_TEMPLATE, byte_tokenizer
from tests.model.test_gguf import write as write_gguf
from tests.processes import running_server
from tests.test_lossless import plain_decoding

NARROW, WIDE = 264, 328
# ids 256 to 269: those from 264 on are no rows of the narrow models
SPECIAL = ("<|start|>", "<|end|>", "he", *(f"<|reserved_{i}|>" for i in range(10)), "[PAD]")
PAD = 269
# Begins with a blank and a block, which whatever stands before it must not change.
TEMPLATE = (
    "  {% if bos_token is defined %}{{ bos_token }}{% endif %}\n"
    "{%- macro close() %}{{ eos_token }}{{ unk_token }}{% endmacro %}"
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}{{ close() }}\n"
    "  {% endif %}{% if mask_token is defined %}masked{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n§ {% endif %}"
)
SAMPLED = {"temperature": 1.5, "max_tokens": 60, "raw": True}


@dataclass(frozen=True)
class Folders:
    """Targets and drafts by their rows."""

    targets: dict[int, Path]
    drafts: dict[int, Path]


@pytest.fixture(scope="module")
def folders(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Folders:
    targets, drafts = (
        {rows: tmp_path_factory.mktemp(f"{name}-{rows}") for rows in (NARROW, WIDE)}
        for name in ("target", "draft")
    )
    for source, folders in zip(tiny_pair, (targets, drafts), strict=True):
        for rows, folder in folders.items():
            save_resized(source, folder, rows)
    tokenizer = byte_tokenizer(SPECIAL)
    tokenizer.chat_template = TEMPLATE
    tokenizer.bos_token, tokenizer.eos_token = "<|reserved_0|>", "<|end|>"
    tokenizer.save_pretrained(targets[WIDE])
    (targets[WIDE] / "generation_config.json").write_text('{"eos_token_id": [257, 5, 9999, -1]}')
    tokenizer.chat_template = "{# " + "long " * 13_000 + "#}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(targets[NARROW])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(drafts[WIDE])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.bos_token, tokenizer.mask_token = "<|start|>", "<|reserved_1|>"
    tokenizer.save_pretrained(drafts[NARROW])
    return Folders(targets, drafts)


def save_resized(source: Path, folder: Path, rows: int) -> None:
    """A model with more rows, the new ones as likely as the others."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
            weight[256:] = 1.1 * weight[: rows - 256]
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def servers(folders: Folders) -> Iterator[dict[int, str]]:
    """host:port by rows."""
    options = ["--port", "0", "--threads", "1", "--kv-tokens", "8192", "--no-pipeline"]
    with (
        running_server("--model", str(folders.targets[NARROW]), *options) as narrow,
        running_server("--model", str(folders.targets[WIDE]), *options) as wide,
    ):
        yield {NARROW: narrow, WIDE: wide}


def joined(server: str, draft: Path, **options: object) -> Edge:
    return Edge(EdgeConfig(server=server, draft=str(draft), **options))


@pytest.mark.parametrize(("target", "draft"), [(WIDE, NARROW), (NARROW, WIDE)])
@pytest.mark.usefixtures("eager")
def test_the_text_is_plain_where_the_models_have_different_rows(
    folders: Folders, servers: dict[int, str], target: int, draft: int
) -> None:
    from runtime.model.open import open_engine

    engine = open_engine(str(folders.targets[target]), "float32", "cpu", lambda _: 1024, 16)
    own_stops = tuple(Tokenizer.load(folders.targets[target]).stop_ids)
    beyond, per_verification = 0, []
    with joined(servers[target], folders.drafts[draft], **SAMPLED) as edge:
        for seed in range(6):
            answer = edge.generate(f"seed {seed}", seed=seed)
            assert answer.text
            sampling = Sampling(60, temperature=1.5, seed=seed, stop_ids=own_stops)
            assert answer.tokens == plain_decoding(engine, edge.encode(f"seed {seed}"), sampling)
            beyond += max(answer.tokens) >= NARROW
            per_verification.append(answer.statistics.tokens_per_verification)
    if target is WIDE:
        assert beyond > 2, "no text has a token that the draft lacks: no test"
    assert max(per_verification) > 1.1, "nothing is accepted"


def test_a_draft_in_a_gguf_file_goes_with_a_target_in_a_folder(
    folders: Folders, servers: dict[int, str], tmp_path: Path
) -> None:
    """The file lists as many tokens as the model has rows: it is padded."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folders.drafts[WIDE])
    file = write_gguf(tmp_path / "draft.gguf", model, metadata=(add_padded_vocabulary,))
    for rows, server in servers.items():
        answers = []
        for draft in (file, folders.drafts[WIDE]):
            with joined(server, draft, raw=True, max_tokens=12) as edge:
                answer = edge.generate("Grüße, 🙂 the end")
                assert answer.text
                answers.append(answer.tokens)
        assert answers[0] == answers[1], rows


def add_padded_vocabulary(writer: gguf.GGUFWriter) -> None:
    ids = byte_tokenizer(SPECIAL).get_vocab()
    tokens = [*sorted(ids, key=ids.get), *(f"[PAD{index}]" for index in range(len(ids), WIDE))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * len(SPECIAL) + [5] * (WIDE - len(ids)))
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(257)


def test_a_prompt_that_the_draft_cannot_read_is_answered_plainly(
    folders: Folders, servers: dict[int, str]
) -> None:
    with joined(servers[WIDE], folders.drafts[NARROW], raw=True, max_tokens=12) as edge:
        text = "[PAD] and more"
        assert PAD in edge.encode(text)
        answer = edge.generate(text)
        drafted = answer.text
        assert answer.statistics.tokens_per_verification == 1
        assert drafted == edge.generate(text, max_budget=0).text
    with joined(servers[WIDE], folders.drafts[WIDE], raw=True, max_tokens=12) as edge:
        assert edge.generate(text).text == drafted


def test_a_prompt_that_the_target_cannot_read_is_refused_before_it_is_sent(
    folders: Folders,
    servers: dict[int, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draft, server = folders.drafts[WIDE], servers[NARROW]
    with joined(server, draft, raw=True, max_tokens=5) as edge:
        uplink = edge._worker.uplink
        sent = uplink.bytes_sent
        with pytest.raises(ConfigError, match=r"'\[PAD\]' \(id 269\).* below 264"):
            edge.generate("say [PAD]")
        assert uplink.bytes_sent == sent
        answer = edge.generate("say")
        assert answer.text
        link = edge._background.run(uplink.link()).result()
        for prompt, stops, bias in (
            ((1, PAD), (), ()),
            ((1, -1), (), ()),
            ((1,), (-1,), ()),
            ((1,), (), ((-1, 2.0),)),
        ):
            with pytest.raises(ServerError, match="outside the vocabulary") as caught:
                link.request(prompt, Sampling(3, stop_ids=stops, logit_bias=bias))
            assert caught.value.code is wire.ErrorCode.LIMIT
        assert uplink.bytes_sent == sent + answer.statistics.bytes_sent
        assert list(edge.generate("say"))
    asked = ["runtime.edge", "--server", server, "--draft", str(draft), "--prompt", "say [PAD]"]
    monkeypatch.setattr(sys, "argv", [*asked, "--raw"])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'[PAD]' (id 269)" in line
    # what people write into a template is text, which both can read
    template = tmp_path / "template"
    template.write_text("{{ messages[0].content }}")
    monkeypatch.setattr(sys, "argv", [*asked, "--chat-template", str(template)])
    assert main() == 0


def test_an_answer_that_this_target_cannot_go_on_with_is_a_sentence(
    folders: Folders, servers: dict[int, str], tmp_path: Path
) -> None:
    """It was begun with a server whose model has more rows."""
    draft, file = folders.drafts[WIDE], tmp_path / "answer"
    save(file, Transcript([1, 2], Sampling(5), [PAD]), Tokenizer.load(draft).vocabulary_hash())
    told = pytest.raises(ConfigError, match=r"'\[PAD\]' \(id 269\)")
    with joined(servers[NARROW], draft, resume_file=str(file)) as edge, told:
        edge.resume()
    with joined(servers[WIDE], draft, resume_file=str(file)) as edge:
        assert list(edge.resume())


def test_a_stop_id_that_this_target_lacks_does_not_keep_an_answer_from_going_on(
    folders: Folders, servers: dict[int, str], tmp_path: Path
) -> None:
    """It was begun with a server whose model has more rows: this one never says such an id."""
    draft, file = folders.drafts[WIDE], tmp_path / "answer"
    digest = Tokenizer.load(draft).vocabulary_hash()
    with joined(servers[NARROW], draft, resume_file=str(file)) as edge:
        for stops in ((), (PAD,)):
            save(file, Transcript([1, 2], Sampling(12, stop_ids=stops), [3]), digest)
            answer = edge.resume()
            assert answer.text
            assert not file.exists()
            if not stops:
                want = answer.tokens
        assert answer.tokens == want
        assert len(want) > 1


def test_ids_that_an_edge_sends_all_the_same_are_refused(
    folders: Folders, servers: dict[int, str]
) -> None:
    """Past our own checks: the server says LIMIT, and serves on."""
    with joined(servers[NARROW], folders.drafts[WIDE], raw=True, max_tokens=5) as edge:
        link = edge._background.run(edge._worker.uplink.link()).result()
        welcome = link._peer.connection.welcome
        link.welcome = link._peer.connection.welcome = wire.Welcome(
            1, WIDE, welcome.vocabulary_hash, 8, 1000, 4, "it says it has more"
        )
        link._peer.connection._vocabulary_size = WIDE

        async def ask() -> None:
            await link.request((1, PAD), Sampling(3)).verdict()

        with pytest.raises(ServerError, match="269 is outside the vocabulary") as caught:
            edge._background.run(ask()).result()
        assert caught.value.code is wire.ErrorCode.LIMIT
        assert list(edge.generate("again"))


def expected_ids(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    """What transformers makes of a conversation."""
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(folder)
    return judge.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("draft", [NARROW, WIDE])
def test_the_targets_template_makes_the_prompt(
    folders: Folders, servers: dict[int, str], draft: int, tmp_path: Path
) -> None:
    """Whether the draft has another one or none, and whatever it calls its special tokens."""
    messages = [{"role": "user", "content": "Grüße\n  {{ bos_token }}"}] * 2
    expected = expected_ids(folders.targets[WIDE], messages)
    with joined(servers[WIDE], folders.drafts[draft]) as edge:
        assert edge.encode(messages) == expected
    with joined(servers[WIDE], folders.targets[WIDE]) as edge:
        assert edge._worker.uplink.template is None, "it is sent to who has it"
        assert edge.encode(messages) == expected
    file = tmp_path / "mine"
    file.write_text("mine: {{ messages[0].content }}", encoding="utf-8")
    with joined(servers[WIDE], folders.drafts[draft], chat_template=str(file)) as edge:
        assert edge.tokenizer.decode(edge.encode("this")) == "mine: this"


def test_the_drafts_own_template_is_there_for_the_asking(
    folders: Folders, servers: dict[int, str]
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    own = expected_ids(folders.drafts[NARROW], messages)
    with joined(servers[WIDE], folders.drafts[NARROW], chat_template="draft") as edge:
        assert edge.encode(messages) == own != expected_ids(folders.targets[WIDE], messages)
    bare = joined(servers[WIDE], folders.drafts[WIDE], chat_template="draft")
    with bare as edge, pytest.raises(ValueError, match="template"):
        edge.encode(messages)


def test_a_template_too_long_to_be_sent_is_asked_for(
    folders: Folders, servers: dict[int, str]
) -> None:
    told = pytest.raises(ConfigError, match="too long to be sent; give --chat-template FILE")
    with joined(servers[NARROW], folders.drafts[NARROW]) as edge, told:
        edge.encode("hi")
    with joined(servers[NARROW], folders.targets[NARROW], max_tokens=5) as edge:
        assert edge.encode("hi") == expected_ids(
            folders.targets[NARROW], [{"role": "user", "content": "hi"}]
        )


def test_a_template_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read --chat-template .*nowhere"):
        joined("127.0.0.1:1", tmp_path, chat_template=str(tmp_path / "nowhere"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read --chat-template"):
        joined("127.0.0.1:1", tmp_path, chat_template=str(tmp_path / "bytes"))
    (tmp_path / "blank").write_text(" \n")
    for nothing in (str(tmp_path / "blank"), "/dev/null"):
        with pytest.raises(ConfigError, match=f"^--chat-template {nothing} is empty; expected"):
            joined("127.0.0.1:1", tmp_path, chat_template=nothing)
    (tmp_path / "long").write_text("x" * (2**20 + 1))
    with pytest.raises(ConfigError, match="longer than any template"):
        joined("127.0.0.1:1", tmp_path, chat_template=str(tmp_path / "long"))


def test_an_edge_with_more_rows_finds_out_by_itself_that_the_vocabulary_is_another(
    folders: Folders, servers: dict[int, str], tmp_path: Path
) -> None:
    """The server has fewer rows and cannot tell; an end with as few rows is refused by it."""
    for rows in (WIDE, NARROW):
        other = tmp_path / f"other-{rows}"
        other.mkdir()
        for file in folders.drafts[rows].iterdir():
            data = file.read_bytes()
            if file.suffix == ".json":
                data = data.replace(b"reserved_3", b"reserved_X")
            (other / file.name).write_bytes(data)
        with pytest.raises(ServerError, match="different vocabularies") as caught:
            joined(servers[NARROW], other).connect()
        assert caught.value.code is wire.ErrorCode.VOCABULARY
        assert f"'other-{rows}' ({rows} tokens)" in str(caught.value)
        assert f"'{folders.targets[NARROW].name}' ({NARROW} tokens)" in str(caught.value)


def test_more_stop_ids_than_a_request_carries_are_a_sentence(
    folders: Folders, servers: dict[int, str], tmp_path: Path
) -> None:
    for file in folders.drafts[WIDE].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": list(range(WIDE))}))
    told = pytest.raises(ConfigError, match=r"name 270 stop ids; .* at most 255")
    with joined(servers[WIDE], tmp_path, raw=True) as edge, told:
        edge.generate("hi")
    config.write_text(json.dumps({"eos_token_id": [-1, 5, *range(300, 4000)]}))
    with joined(servers[NARROW], tmp_path, raw=True, max_tokens=5) as edge:
        assert edge._prompts.stop_ids(edge.config) == (5, 257)
        assert list(edge.generate("hi"))
