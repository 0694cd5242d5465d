"""Answers of a real server at an edge: where stop strings end them, and what a terminal sees."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.config import ConfigError, EdgeConfig
from runtime.console import Terminal
from runtime.edge.answer import Answer
from runtime.edge.chat import chat, stream_answer
from runtime.edge.client import Edge
from runtime.edge.net.uplink import Uplink
from runtime.edge.prompts import Prompts
from runtime.model.tokenizer import Tokenizer
from runtime.terminal import inert
from runtime.wire import messages as wire
from tests.conftest import CHAT_TEMPLATE
from tests.server.process import Process, server_process

REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif 'boom' in m.content %}{{ 1 // 0 }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)


@pytest.fixture(scope="module")
def pair(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Target and draft have a template that refuses some conversations; and an odd name."""
    copies = []
    for folder in tiny_pair:
        copy = tmp_path_factory.mktemp("refusing") / "[/red]{y}\x1b[2J"
        shutil.copytree(folder, copy)
        assert (copy / "chat_template.jinja").read_text() == CHAT_TEMPLATE
        (copy / "chat_template.jinja").write_text(REFUSING)
        copies.append(copy)
    return copies[0], copies[1]


@pytest.fixture(scope="module")
def server(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """It waits for drafts: a request that nobody ends goes on for ever."""
    options = ["--model", str(pair[0]), "--threads", "1", "--no-pipeline", "--credits", "open"]
    with server_process(tmp_path_factory.mktemp("server") / "log", *options) as process:
        yield process


@pytest.fixture
def options(pair: tuple[Path, Path], server: Process) -> dict[str, object]:
    host, port = server.address
    return {"server": f"{host}:{port}", "draft": str(pair[1]), "max_tokens": 40}


def answer_of(edge: Edge, **asked: object) -> Answer:
    """Read to its end."""
    answer = edge.generate("stop", **asked)
    assert answer.text == "".join(answer), "it may be read again"
    return answer


def text_of(edge: Edge, **asked: object) -> str:
    return answer_of(edge, **asked).text


def test_an_answer_ends_before_its_stop_string(options: dict[str, object], eager: None) -> None:
    with Edge(EdgeConfig(**options)) as edge:
        whole, ids = text_of(edge), answer_of(edge).tokens
        assert len(whole) > 20
        for start, length in ((0, 1), (5, 1), (6, 4), (11, 9), (len(whole) - 2, 2)):
            stop = whole[start : start + length]
            ends = []
            for budget in (0, 32):
                answer = answer_of(edge, stop=[stop, "never"], max_budget=budget)
                assert answer.text == whole[: whole.find(stop)]
                assert answer.finish_reason == "stop"
                assert ids[: len(answer.tokens)] == answer.tokens
                assert answer.statistics.tokens == len(answer.tokens)
                ends.append(len(answer.tokens))
            assert ends[0] == ends[1], "drafted or not, it ends with the same token"
        assert text_of(edge, stop="never") == whole
        # what may be the beginning of a stop string is held, and given when nothing more comes
        assert text_of(edge, stop=[whole[-3:] + "x"]) == whole


def test_the_server_hears_at_once_that_it_is_enough(
    options: dict[str, object], server: Process
) -> None:
    with Edge(EdgeConfig(**options)) as edge:
        stop = text_of(edge)[4:6]
        ended = server.samples()["request_success_total", "length"]
        assert answer_of(edge, stop=stop, max_tokens=900).statistics.tokens < 40
        now = server.samples_once(lambda samples: samples["num_requests_running",] == 0)
        assert now["num_requests_running",] == 0
        assert now["request_success_total", "length"] == ended


def test_the_server_hears_at_once_that_nobody_reads_on(
    options: dict[str, object], server: Process
) -> None:
    with Edge(EdgeConfig(**options)) as edge:
        for leave in (lambda answer: next(iter(answer)), lambda answer: answer.cancel()):
            leave(answer := edge.generate("for ever", max_tokens=900))
            now = server.samples_once(lambda samples: samples["num_requests_running",] == 0)
            assert now["num_requests_running",] == 0
            assert answer.finish_reason == "cancelled"


def test_stop_strings_survive_the_edge(options: dict[str, object], tmp_path: Path) -> None:
    """An edge that goes on with the answer of another ends where that one would have ended."""
    path = tmp_path / "answer"
    with Edge(EdgeConfig(**options)) as edge:
        whole = text_of(edge)
    stop = whole[20:24]
    asked = EdgeConfig(**options, resume_file=str(path), max_budget=0, stop=[stop])
    with Edge(asked) as edge:
        stream = iter(edge.generate("stop"))
        shown = "".join(next(stream) for _ in range(8))
        stream.close()
    assert path.exists()
    assert whole.startswith(shown)
    with Edge(EdgeConfig(**options, resume_file=str(path))) as edge:
        assert edge.resume().text == whole[: whole.find(stop)]
    assert not path.exists()


def typing(*lines: str) -> Callable[[str], str]:
    typed = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    return read_line


def test_a_chat_drops_a_turn_that_is_refused_and_goes_on(options: dict[str, object]) -> None:
    console = Terminal(file=io.StringIO(), width=200)
    with Edge(EdgeConfig(**options, stats=False)) as edge:
        chat(edge, console, typing("one", "boom", "caf\udce9", "two"))
        said = console.file.getvalue().split("\n", 1)[1]  # behind the help
        first = edge.generate("one").text
        turns = [("user", "one"), ("assistant", first), ("user", "two")]
        messages = [{"role": role, "content": text} for role, text in turns]
        second = edge.generate(messages).text
    refusals = [
        "the chat template refuses this conversation: integer division or modulo by zero",
        "the text is not valid Unicode: it has a lone surrogate",
    ]
    assert said == "\n".join([inert(first), *refusals, inert(second), "", ""])


def test_a_chat_that_has_grown_too_long_says_how_to_go_on(options: dict[str, object]) -> None:
    """Where the conversation is what fills the context; one text that does cannot be helped so."""
    console = Terminal(file=io.StringIO(), width=200)
    with Edge(EdgeConfig(**(options | {"max_tokens": 2}), stats=False)) as edge:
        too_long = "x" * edge.max_context
        chat(edge, console, typing("one", too_long, "/reset", too_long))
    said = [line for line in console.file.getvalue().splitlines() if "the context of" in line]
    assert [line.endswith("; /reset forgets the conversation") for line in said] == [True, False]


def test_a_chat_that_can_have_no_turn_does_not_begin(options: dict[str, object]) -> None:
    def never(prompt: str) -> str:
        raise AssertionError("a line was asked for")

    console = Terminal(file=io.StringIO())
    with Edge(EdgeConfig(**options, system="Be brief.")) as edge:
        with pytest.raises(ConfigError, match="no system role"):
            chat(edge, console, never)
        with pytest.raises(ConfigError, match="no system role"):
            edge.generate("x")
        assert list(edge.generate("x", system=None)), "options of one request count"
        with pytest.raises(ConfigError, match="no switch for thinking"):
            edge.generate("x", system=None, enable_thinking=False)
    assert console.file.getvalue() == ""


def test_a_terminal_sees_text_and_a_program_the_bytes(options: dict[str, object]) -> None:
    """A model of random weights writes every control character sooner or later."""
    console = Terminal(file=io.StringIO(), force_terminal=False)
    with Edge(EdgeConfig(**options)) as edge:
        asked = {"max_tokens": 400, "temperature": 2.0, "seed": 9}
        raw = edge.generate("x", **asked).text
        stream_answer(edge.generate("x", **asked), console)
    assert "\x1b" in raw
    assert console.file.getvalue() == inert(raw) + "\n"


def prompts(config: EdgeConfig) -> Prompts:
    """Of an edge that has not heard of a target."""
    hello = wire.Hello(wire.VERSION, 260, bytes(16), "x")
    return Prompts(Tokenizer.load(config.draft), Uplink("nowhere", 1, hello))


@pytest.mark.parametrize("prompt", [None, 3])
def test_a_prompt_that_is_no_text_is_refused(pair: tuple[Path, Path], prompt: object) -> None:
    config = EdgeConfig(draft=str(pair[1]))
    with pytest.raises(ConfigError, match="expected a text, or a list of messages"):
        prompts(config).encode(prompt, config)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "no chat template; give one with --chat-template"),
        ({"rag": CHAT_TEMPLATE}, "only chat templates named rag; give one with --chat-template"),
        (CHAT_TEMPLATE + "{% if x %}", "the chat template is broken: line "),
    ],
)
def test_a_draft_without_a_template_is_asked_raw(
    tiny_pair: tuple[Path, Path], template: str | dict[str, str] | None, sentence: str
) -> None:
    config = EdgeConfig(draft=str(tiny_pair[1]), raw=True)
    asked = prompts(config)
    asked.tokenizer._tokenizer.chat_template = template
    assert asked.encode("x", config) == asked.tokenizer.encode("x")
    for prompt in ("x", [{"role": "user", "content": "x"}]):
        with pytest.raises(ConfigError, match=sentence):
            asked.encode(prompt, EdgeConfig(draft=config.draft))
