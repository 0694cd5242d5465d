"""The conformance cases: our server passes them all, servers that misbehave fail the right ones."""

import asyncio
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from runtime.config import parse_address
from runtime.conform.__main__ import main, summarise
from runtime.conform.drafts import NO_WAIT
from runtime.conform.peer import Peer, Target
from runtime.conform.run import Outcome, Result, all_cases, junit, line, run, select
from runtime.model.tokenizer import Tokenizer
from runtime.server.policy import edge_profile, pipeline
from runtime.server.users import add_user
from runtime.wire import messages as wire
from runtime.wire.frames import encode_frame
from runtime.wire.tls import load_certificate, trust
from tests.faults.rig import Rig
from tests.processes import running_server
from tests.server.test_door import self_signed
from tests.wire.mutants import MUTANTS, Mutant, relay
from tests.wire.protocol_page import PAGE

OPTIONS = ["--port", "0", "--threads", "1", "--kv-tokens", "8192", "--max-step-nodes", "300"]
# with these every edge always has the turn: no case is skipped,
POLICY = ["--chunk-tokens", "24", "--no-pipeline", "--credits", "open"]
# but these, which need edges that have to wait
CREDIT_CASES = ("a_draft_without_its_credit", "one_credit_for_each_wait")


def test_the_pages_say_how_many_cases_there_are() -> None:
    root = Path(__file__).parent.parent.parent
    for page in ("README.md", "CHANGELOG.md"):
        told = re.search(r"(\d+) numbered cases", (root / page).read_text(encoding="utf-8"))
        assert told is not None
        assert int(told[1]) == len(all_cases()), page


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--wait-s", "nan"], "nan is not between 0.001 and"),
        (["--wait-s", "-1"], "-1 is not between 0.001 and"),
        (["--junit", "/no/such/folder/x"], "cannot write /no/such/folder/x; name a file in"),
        (["--junit", "x" * 300], "; name a file in a folder that is there"),
        (["--user", "caf\udce9"], "--user is not valid UTF-8; check its special characters"),
    ],
)
def test_options_that_cannot_be_are_told_before_a_case_is_run(
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["runtime.conform", "127.0.0.1:1", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of users with one user, and her token's file."""
    folder = tmp_path_factory.mktemp("conform")
    token = folder / "token"
    token.write_text(add_user(folder / "users.toml", "alice"), encoding="utf-8")
    token.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def target(tiny_pair: tuple[Path, Path], folder: Path) -> Iterator[Target]:
    """A server with users."""
    users = ["--users", str(folder / "users.toml")]
    with running_server("--model", str(tiny_pair[0]), *OPTIONS, *POLICY, *users) as address:
        meaning = own_hash(tiny_pair)
        yield Target(*parse_address(address), hello(tiny_pair, "alice"), meaning, token(folder))


def own_hash(tiny_pair: tuple[Path, Path]) -> Callable[[int], bytes]:
    return Tokenizer.load(str(tiny_pair[0])).vocabulary_hash


def hello(tiny_pair: tuple[Path, Path], user: str = "") -> wire.Hello:
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    size, digest = tokenizer.vocabulary_size, tokenizer.vocabulary_hash()
    return wire.Hello(wire.VERSION, size, digest, "conformance", user)


def token(folder: Path) -> bytes:
    return (folder / "token").read_bytes()


def outcomes(names: Sequence[str], target: Target) -> dict[str, Result]:
    async def attempt() -> list[Result]:
        return await run(select(names), target, lambda result: None)

    return {result.case.name: result for result in asyncio.run(attempt())}


def test_our_server_passes_every_case(target: Target) -> None:
    results = outcomes([], target)
    assert len(results) == len(all_cases()) >= 80
    wrong = {name: r.reason for name, r in results.items() if r.outcome is not Outcome.PASSED}
    assert wrong == dict.fromkeys(CREDIT_CASES, NO_WAIT)


def test_a_server_with_one_place_passes_the_cases_of_credits(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No credit comes back from an edge that keeps it, so there is time to draft without one.

    Edges are thought to be near and quick: a tree is in the next step, which has one place, however
    short the steps of a tiny model are.
    """
    monkeypatch.setattr(pipeline, "HOLD_S", 3600.0)
    monkeypatch.setattr(edge_profile, "RTT_S", 0.0)
    monkeypatch.setattr(edge_profile, "DRAFT_S", 0.0)
    rig = Rig(tiny_pair[0], credits="drr", max_batch=1)
    anybody = Target("127.0.0.1", 0, hello(tiny_pair), own_hash(tiny_pair))
    assert outcomes_of(CREDIT_CASES, rig, anybody) == ["PASSED", "PASSED"]


def test_cases_are_numbered_named_once_and_cite_the_page() -> None:
    cases = all_cases()
    assert len({case.number for case in cases}) == len({case.name for case in cases}) == len(cases)
    headings = re.findall(r"^#{2,3} ([\d.]+) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for case in cases:
        assert case.section in headings, case
        assert re.fullmatch(r"\w.{12,}\.", case.demand), case


@pytest.fixture
def short_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that hangs is ended sooner; one of these that does not takes some seconds."""
    monkeypatch.setattr("runtime.conform.run.CASE_TIMEOUT_S", 60.0)


@pytest.mark.usefixtures("short_cases")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_server_that_misbehaves_fails_the_right_cases(mutant: Mutant, target: Target) -> None:
    async def attempt() -> list[Result]:
        async with relay(mutant, target.host, target.port) as port:
            front = replace(target, port=port, wait_s=5)
            return await run(select(mutant.fails + mutant.holds), front, lambda result: None)

    results = asyncio.run(attempt())
    failed = {result.case.name for result in results if result.outcome is Outcome.FAILED}
    assert failed == set(mutant.fails), [(r.case.name, r.reason) for r in results]


def test_a_relay_that_changes_nothing_is_a_right_server(target: Target) -> None:
    test_a_server_that_misbehaves_fails_the_right_cases(
        Mutant("nothing", (), ("ping", "right_drafts", "flags", "cancel_in_the_edges_turn")), target
    )


@pytest.mark.parametrize("greeting", [b"", b"\0" * 64, b"\xff" * 64, b"SSH-2.0-OpenSSH_9.7\r\n"])
def test_whatever_answers_a_case_fails_with_a_sentence(target: Target, greeting: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read(1)
        writer.close()

    async def attempt() -> list[Result]:
        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        front = replace(target, port=port, token=b"", wait_s=1)
        results = await run(select(["hello_is_answered", "ping"]), front, lambda result: None)
        listener.close()
        return results

    for result in asyncio.run(attempt()):
        assert result.outcome is Outcome.FAILED
        assert result.reason


def outcomes_of(names: Sequence[str], rig: Rig, target: Target) -> list[str]:
    """The same on a server in this process."""

    async def attempt() -> list[str]:
        await rig.start()
        here = replace(target, port=rig.port)
        results = await run(select(names), here, lambda result: None)
        await rig.kill()
        return [result.outcome.name for result in results]

    return asyncio.run(attempt())


def test_a_server_that_decides_by_itself_skips_and_never_passes(
    tiny_pair: tuple[Path, Path],
) -> None:
    """Without nodes nobody can be asked for drafts; without users nobody can prove anything."""
    anybody = Target("127.0.0.1", 0, hello(tiny_pair), own_hash(tiny_pair))
    names = ["right_drafts", "equal_siblings", "another_base", "drafts_of_nothing", "a_stop_id"]
    results = outcomes_of(names, Rig(tiny_pair[0], max_nodes=0), anybody)
    assert results == ["SKIPPED"] * 4 + ["PASSED"]
    names = ["a_guessed_proof", "hello_is_answered", "another_vocabulary"]
    results = outcomes_of(names, Rig(tiny_pair[0]), anybody)
    assert results == ["SKIPPED", "PASSED", "PASSED"]


def test_over_tls(tiny_pair: tuple[Path, Path], folder: Path) -> None:
    self_signed(folder, "server")
    certificate = load_certificate(folder / "server.pem", folder / "server.key")
    pinned = trust(certificate.pin)
    alice, meaning = hello(tiny_pair, "alice"), own_hash(tiny_pair)
    target = Target("127.0.0.1", 0, alice, meaning, token(folder), pinned)
    rig = Rig(tiny_pair[0], certificate, users=str(folder / "users.toml"))
    names = ["the_server_proves_itself", "a_guessed_proof", "hello_in_single_bytes", "flags"]
    names += ["right_drafts", "an_edge_that_closes_its_half"]
    assert outcomes_of(names, rig, target) == ["PASSED"] * 5 + ["SKIPPED"]


def conform(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["runtime.conform", *options])
    return main()


def test_the_command(
    target: Target,
    tiny_pair: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert conform(monkeypatch, "--list") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(all_cases())
    xml, draft = tmp_path / "junit.xml", ["--draft", str(tiny_pair[0])]
    user = ["--user", "alice", "--token-file", str(folder / "token")]
    address = f"{target.host}:{target.port}"
    wanted = ["--junit", str(xml), "201", "wrong_magic"]
    assert conform(monkeypatch, address, *draft, *user, *wanted) == 0
    assert "2 passed, 0 failed, 0 skipped" in capsys.readouterr().out
    suite = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "0")
    assert [case.get("name") for case in suite] == ["201 unknown_type", "104 wrong_magic"]


def test_a_failure_is_told() -> None:
    """On the terminal, in the XML, and by the exit status."""
    result = Result(all_cases()[0], Outcome.FAILED, "it <does> this", 0.5)
    assert "FAILED" in line(result)
    assert "it <does> this" in line(result)
    suite = ElementTree.fromstring(junit([result]))
    assert suite.get("failures") == "1"
    assert suite.find("testcase/failure").get("message") == "it <does> this"
    assert summarise([result]) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["127.0.0.1:1", "--draft", "DRAFT"], "no connection"),
        (["127.0.0.1:1", "no_such_case"], "there is no case no_such_case"),
        (["127.0.0.1", "--draft", "DRAFT"], "expected host:port"),
        ([], "which server?"),
        (["127.0.0.1:1", "--user", "alice"], "belong together"),
        (["127.0.0.1:1", "--draft", "nowhere"], "nowhere"),
    ],
)
def test_a_command_that_cannot_run_says_why(
    tiny_pair: tuple[Path, Path],
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(tiny_pair[0])
    options = [model if option == "DRAFT" else option for option in options]
    assert conform(monkeypatch, *options) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_a_ping_after_our_end_is_not_answered() -> None:
    """The server may ask before it hears that our half is closed."""
    late: list[bytes] = []

    async def ask_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late.append(await reader.read())
        writer.write(encode_frame(wire.Ping(7), 0, 0))
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(ask_late, "127.0.0.1", 0) as server:
            place = server.sockets[0].getsockname()[:2]
            greeting = wire.Hello(wire.VERSION, 260, bytes(16), "late")
            streams = await asyncio.open_connection(*place)
            peer = Peer(*streams, Target(*place, greeting, lambda rows: bytes(16)))
            peer.end()
            await peer.ended()
            peer.hang_up()

    asyncio.run(scenario())
    assert late == [b""]
