"""What the doctor says of this machine and of real servers, as a person or a program is told."""

import asyncio
import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import EdgeConfig, Server, ServerConfig
from runtime.bench.link import Conditions, emulated_link
from runtime.doctor import server as doctor
from runtime.doctor.finding import Finding, State
from runtime.server.users import add_user
from tests.certificates import self_signed
from tests.ports import reserved_port

STAGES = ["connection", "vocabulary", "template", "round trip", "upload", "drafting", "speed"]


def look(server: str, draft: Path, **options: object) -> dict[str, Finding]:
    """The findings of a server, by topic."""

    async def all_of() -> list[Finding]:
        config = EdgeConfig(server=server, draft=str(draft), threads=1, **options)
        return [finding async for finding in doctor.look(config)]

    return {finding.topic: finding for finding in asyncio.run(all_of())}


# Whether they are as they should be is this machine's business.
MEASURED = {"upload", "speed"}


def only_fault(found: dict[str, Finding]) -> Finding:
    """It is the last, and nothing else is wrong."""
    *others, last = found.values()
    assert all(finding.state is State.OK for finding in others if finding.topic not in MEASURED)
    assert last.state is State.FAULT
    return last


@pytest.fixture(scope="module")
def guarded(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address of a server with TLS and a user alice, and a folder with her files."""
    folder = tmp_path_factory.mktemp("guarded")
    self_signed(folder, "server")
    self_signed(folder, "other")
    token = folder / "token"
    token.write_text(add_user(folder / "users.toml", "alice"), encoding="utf-8")
    token.chmod(0o600)
    config = ServerConfig(
        model=str(tiny_pair[0]),
        users=str(folder / "users.toml"),
        tls_certificate=str(folder / "server.pem"),
        tls_key=str(folder / "server.key"),
        port=0,
        http="",
        kv_tokens=4096,
    )
    with Server(config) as server:
        yield server.address.replace("127.0.0.1", "localhost"), folder


def test_of_a_server_that_is_well(
    tiny_pair: tuple[Path, Path], tiny_server: str, eager: None
) -> None:
    found = look(tiny_server, tiny_pair[1])
    assert list(found) == STAGES
    for topic, finding in found.items():
        assert finding.state is State.OK or (topic in MEASURED and finding.state is State.WARNING)
    assert found["vocabulary"].figures["target_tokens"] == 260
    assert found["template"].figures == {"from_target": False}, "both have the same"
    figures = found["speed"].figures
    assert figures["drafted_tokens_per_s"] > 0
    assert figures["plain_tokens_per_s"] > 0
    # this server never decodes by itself, and the draft is often right
    assert figures["tokens_per_verification"] > 1.5
    assert figures["nodes"] > 1
    assert figures["plain_share"] < 0.2


def test_a_far_server(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    """Of a link whose numbers are known: what is measured cannot be better."""
    conditions = Conditions(rtt_s=0.03, up_bytes_per_s=20e3)
    with emulated_link(tiny_server, conditions) as far:
        found = look(far, tiny_pair[1])
    assert found["round trip"].figures["low_ms"] >= 30
    upload = found["upload"]
    assert upload.state is State.WARNING
    assert upload.figures["bytes_per_s"] < 25e3
    assert upload.figures["burst_bytes"] > 1000
    speed = found["speed"].figures
    # all but a text's last rounds have a draft, and the way in them
    assert speed["drafted_tokens_per_s"] < 1.5 * speed["tokens_per_verification"] / 0.03


def test_an_edge_without_a_model(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    found = look(tiny_server, Path("none"), tokenizer=str(tiny_pair[0]))
    assert list(found) == STAGES
    assert found["speed"].figures["plain_tokens_per_s"] > 0


def test_a_template_that_refuses_what_is_said(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('only tools') }}")
    told = only_fault(look(tiny_server, tiny_pair[1], chat_template=str(template)))
    assert told.topic == "template"
    assert "only tools" in told.sentence
    assert "--chat-template" in told.mend
    found = look(tiny_server, tiny_pair[1], raw=True, frequency_penalty=0.5)
    assert list(found) == STAGES
    assert "--raw" in found["template"].sentence


def test_answers_that_end_at_once(
    tiny_pair: tuple[Path, Path], tiny_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PROBE_TOKENS", 1)
    told = look(tiny_server, tiny_pair[1])["speed"]
    assert told.state is State.WARNING
    assert "hardly any token" in told.sentence


def test_nobody_there(tiny_pair: tuple[Path, Path]) -> None:
    with reserved_port() as port:
        told = only_fault(look(f"127.0.0.1:{port}", tiny_pair[1]))
    assert told.topic == "connection"
    assert "nothing listens there" in told.sentence
    assert "that the server runs there" in told.mend


def test_another_vocabulary(tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_pair[1], other)
    for file in other.glob("*.json"):
        file.write_text(file.read_text().replace("<|start|>", "<|begin|>"))
    told = only_fault(look(tiny_server, other))
    assert told.topic == "greeting"
    assert "different vocabularies" in told.sentence
    assert "--draft" in told.mend
    assert "--tokenizer" in told.mend, "there may be no draft to change"


def test_a_draft_that_cannot_be_loaded(tiny_server: str, tmp_path: Path) -> None:
    told = only_fault(look(tiny_server, tmp_path / "nowhere"))
    assert (told.topic, "--draft" in told.mend) == ("draft", True)


def test_strangers_and_friends(
    guarded: tuple[str, Path], tiny_pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    address, folder = guarded
    draft, ours = tiny_pair[1], str(folder / "server.pem")
    told = only_fault(look(address, draft, tls=str(folder / "other.pem")))
    assert told.topic == "connection"
    assert "certificate is not trusted" in told.sentence
    assert "--tls" in told.mend
    told = only_fault(look(address, draft, tls="sha256:" + 64 * "0"))
    assert (told.topic, "not the one that --tls names" in told.sentence) == ("greeting", True)
    gc.collect()
    assert "never retrieved" not in caplog.text
    told = only_fault(look(address, draft))
    assert "give --tls" in told.mend
    told = only_fault(look(address, draft, tls=ours))
    assert told.topic == "greeting"
    assert "--user and --token-file" in told.mend
    token = {"user": "alice", "token_file": str(folder / "token")}
    assert list(look(address, draft, tls=ours, **token)) == STAGES


def test_an_unreadable_token_is_told_first(tiny_server: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("short")
    token.chmod(0o600)
    told = only_fault(look(tiny_server, tmp_path, user="alice", token_file=str(token)))
    assert told.topic == "options"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.doctor", *options, "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    with reserved_port() as port:
        done = run(f"127.0.0.1:{port}", "--draft", str(tiny_pair[1]))
    assert (done.returncode, done.stderr) == (2, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "to mend: 1"
    assert lines[-2].lstrip().startswith("→ check the address")
    done = run(tiny_server, "--draft", str(tiny_pair[1]), "--json")
    told = json.loads(done.stdout)
    states = {finding["topic"]: finding["state"] for finding in told["findings"]}
    assert list(states)[-len(STAGES) :] == STAGES
    assert states["draft"] == states["kernels"] == states["instructions"] == "ok"
    assert done.returncode == told["status"] == int("warning" in states.values())


def test_this_machine_alone(tiny_pair: tuple[Path, Path]) -> None:
    done = run("--model", str(tiny_pair[0]))
    assert done.returncode == 0, done.stdout
    assert "connection" not in done.stdout
    assert f"model         {tiny_pair[0]}: " in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("127.0.0.1",), "expected host:port"),
        (("--jsn",), "did you mean --json?"),
        (("--user", "alice"), "--user and --token-file belong together"),
    ],
)
def test_a_wrong_option_is_a_sentence(options: tuple[str, ...], sentence: str) -> None:
    done = run(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_makes_no_drafter_is_a_fault(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    told = only_fault(look(tiny_server, tiny_pair[1], drafter="os:system"))
    assert told.topic == "draft"
    assert told.sentence.startswith("--drafter os:system: to call it raises TypeError")
    assert told.mend == "name another --drafter"
