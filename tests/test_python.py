"""The edge and the server as a library: from threads, tasks and loops, and the page about it."""

import asyncio
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime import (
    AsyncEdge,
    ConfigError,
    Edge,
    EdgeConfig,
    ModelError,
    RequestOptions,
    Server,
    ServerConfig,
    ServerError,
)
from runtime.edge.draft.drafter import Drafter

PAGE = Path(__file__).parent.parent / "docs/python.md"
PROMPTS = [f"number {number}" for number in range(6)]


@pytest.fixture
def config(tiny_pair: tuple[Path, Path], tiny_server: str) -> EdgeConfig:
    return EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=40)


@pytest.fixture
def plain(config: EdgeConfig) -> list[str]:
    """The texts of plain decoding, one after the other."""
    with Edge(config) as edge:
        return [edge.generate(prompt, max_budget=0).text for prompt in PROMPTS]


@pytest.mark.usefixtures("eager")
def test_threads_ask_at_once_and_share_passes(
    config: EdgeConfig, plain: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = Drafter.run
    monkeypatch.setattr(
        Drafter, "run", lambda drafter, passes: sizes.append(len(passes)) or run(drafter, passes)
    )
    with Edge(config) as edge, ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = threading.Barrier(len(PROMPTS))

        def ask(prompt: str) -> str:
            together.wait(60)
            return "".join(edge.generate(prompt))

        assert list(pool.map(ask, PROMPTS)) == plain
        assert edge._worker.uplink.opened == 1
    assert max(sizes) > 1


def test_answers_are_written_whether_they_are_read_or_not(
    config: EdgeConfig, plain: list[str]
) -> None:
    with Edge(config) as edge:
        answers = [edge.generate(prompt) for prompt in PROMPTS]
        assert answers[-1].text == plain[-1]
        assert [answer.text for answer in answers] == plain
        assert {answer.finish_reason for answer in answers} == {"length"}
        assert [len(answer.tokens) for answer in answers] == [40] * len(PROMPTS)
        assert "".join(answers[0]) == plain[0], "and may be read again"


def test_tasks_ask_at_once_and_the_other_form_works_in_a_loop(
    config: EdgeConfig, plain: list[str]
) -> None:
    async def scenario() -> None:
        async with AsyncEdge(config) as edge:
            answers = [edge.generate(prompt) for prompt in PROMPTS]
            assert await asyncio.gather(*(answer.text for answer in answers)) == plain
            assert "".join([piece async for piece in answers[0]]) == plain[0]
            async for _ in (left := edge.generate("left early", max_tokens=900)):
                break
            await left.text
            assert left.finish_reason == "cancelled"
        with Edge(config) as edge:
            assert edge.generate(PROMPTS[0]).text == plain[0]

    asyncio.run(scenario())


def test_a_task_that_is_cancelled_cancels_its_answer(config: EdgeConfig) -> None:
    async def scenario() -> None:
        async with AsyncEdge(config) as edge:
            answer = edge.generate("for long", max_tokens=900)
            begun = asyncio.Event()

            async def read() -> None:
                async for _ in answer:
                    begun.set()

            task = asyncio.ensure_future(read())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await answer.text
            assert answer.finish_reason == "cancelled"

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_what_is_cancelled_ends_for_all_its_readers(config: EdgeConfig) -> None:
    with Edge(config) as edge, ThreadPoolExecutor(2) as pool:
        answer = edge.generate("for long", max_tokens=900)
        stream = iter(answer)
        first = next(stream)
        reading = pool.submit(lambda: answer.text)
        answer.cancel()
        assert reading.result(60).startswith(first)
        assert "".join([first, *stream]) == answer.text
        assert answer.finish_reason == "cancelled"
        answer.cancel()


def test_an_answer_that_takes_too_long_is_an_error(config: EdgeConfig) -> None:
    with Edge(config) as edge:
        answer = edge.generate("for long", max_tokens=900, timeout_s=1e-6)
        for _ in range(2):
            with pytest.raises(TimeoutError, match="of at most 900 tokens after 1e-06 s"):
                assert answer.text
        assert answer.finish_reason is None
        assert edge.generate("again", timeout_s=60).text


def test_closing_ends_what_is_being_written(config: EdgeConfig) -> None:
    before = threading.active_count()
    with Edge(config) as edge:
        answers = [edge.generate("for long", max_tokens=900) for _ in range(3)]
        next(iter(answers[0]))
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 3
    assert threading.active_count() <= before


def test_what_cannot_be_is_a_sentence(config: EdgeConfig) -> None:
    edge = Edge(config)
    with pytest.raises(ServerError, match=r"no server yet; call connect\(\)"):
        edge.generate("x")
    edge.close()
    edge.close()
    for late in (edge.connect, lambda: edge.generate("x"), edge.resume, lambda: edge.encode("x")):
        with pytest.raises(ServerError, match="this edge is closed"):
            late()
    with Edge(config) as edge:
        edge.connect()
        for name in ("server", "draft", "resume_file", "device"):
            with pytest.raises(ConfigError, match=f"{name}= is the same for all answers"):
                edge.generate("x", **{name: "other"})
        with pytest.raises(ConfigError, match=r"no option max_token=; did you mean max_tokens=\?"):
            edge.generate("x", max_token=3)
        with pytest.raises(ConfigError, match=r"--temperature is '0.7'; expected float"):
            edge.generate("x", temperature="0.7")
        with pytest.raises(ConfigError, match="no answer to go on with"):
            edge.resume()


def test_the_options_of_an_answer_are_those_of_a_config() -> None:
    from typing import get_type_hints

    of_config = get_type_hints(EdgeConfig)
    for name, kind in get_type_hints(RequestOptions).items():
        assert name == "stop" or kind == of_config[name], name


def test_a_server_in_this_process(tiny_pair: tuple[Path, Path], plain: list[str]) -> None:
    before = threading.active_count()
    limits = {"kv_tokens": 4096, "max_step_nodes": 300, "http": "", "port": 0}
    with Server(ServerConfig(model=str(tiny_pair[0]), **limits)) as server:
        assert server.address == f"127.0.0.1:{server.port}"
        taken = ServerConfig(model=str(tiny_pair[0]), **(limits | {"port": server.port}))
        with pytest.raises(ConnectionError, match="cannot listen"):
            Server(taken).start()
        asked = EdgeConfig(server=server.address, draft=str(tiny_pair[1]), max_tokens=40)
        with Edge(asked) as edge:
            assert [edge.generate(prompt).text for prompt in PROMPTS] == plain
    with pytest.raises(ServerError, match="nothing listens there"), Edge(asked):
        pass
    with (
        pytest.raises(ModelError, match="nowhere"),
        Server(ServerConfig(model="nowhere", **limits)),
    ):
        pass
    with pytest.raises(ConfigError, match=r"redirect= is for python -m runtime.server"):
        Server(ServerConfig(redirect="127.0.0.1:1"))
    assert threading.active_count() <= before


def test_a_program_that_only_names_an_edge_does_not_wait_for_torch() -> None:
    code = "import runtime, sys; runtime.Edge, runtime.AsyncEdge, runtime.Server, runtime.Answer; "
    code += "print({'torch', 'numpy', 'transformers', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_help_shows_the_page() -> None:
    import pydoc

    import runtime

    told = pydoc.render_doc(runtime, renderer=pydoc.plaintext)
    for name in runtime.__all__:
        assert re.search(rf"class {name}\(", told), name


def examples() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 7
    return found


@pytest.mark.parametrize("number", range(7))
def test_the_page_s_examples_run(
    number: int,
    tiny_pair: tuple[Path, Path],
    tiny_server: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = examples()[number]
    draft = f"draft={str(tiny_pair[1])!r}"
    code = code.replace('server="127.0.0.1:8400"', f"server={tiny_server!r}, {draft}")
    code = code.replace("server=server.address", f"server=server.address, {draft}")
    code = code.replace('model="smollm2"', f"model={str(tiny_pair[0])!r}, kv_tokens=4096")
    exec(compile(code, f"example {number}", "exec"), {"__name__": "example"})
    told = capsys.readouterr().out
    assert number == 2 or told.strip()


def test_a_program_that_uses_the_library_is_checked_strictly(tmp_path: Path) -> None:
    for number, code in enumerate(examples()):
        (tmp_path / f"example_{number}.py").write_text(code, encoding="utf-8")
    wrong = 'from runtime import Edge\nEdge().generate("x", temperature="0.7", max_token=1)\n'
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    # what no type of the library's page is made of, and takes mypy half a minute to read
    aside = ["torch", "numpy", "rich", "prometheus_client", "runtime.model", "runtime.server"]
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in aside)
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\nfollow_imports = silent\n{skipped}", encoding="utf-8"
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "."]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"MYPYPATH": str(PAGE.parent.parent), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    complaints = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(complaints) == 2, done.stdout + done.stderr
    assert all(line.startswith("wrong.py:2:") for line in complaints), complaints
    assert 'has incompatible type "str"; expected "float"' in done.stdout
