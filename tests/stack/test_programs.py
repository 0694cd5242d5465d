"""The programs, with --stack: what a person starts."""

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.server.test_renewal import read_again_at_sighup
from tests.stack.daemon import PROGRAM, _stack, daemon, start

SAMPLING = ("--temperature", "1", "--seed", "5", "--max-tokens", "30")


def edge(server: str, draft: Path, *options: str) -> str:
    command = [sys.executable, "-m", "runtime.edge", "--threads", "1", "--server", server]
    command += ["--draft", str(draft), "--prompt", "Hello there", *SAMPLING, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_and_edge_by_the_stack_write_the_same_text(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    command = [sys.executable, "-m", "runtime.server", "--model", str(tiny_pair[0])]
    command += ["--port", "0", "--http", "", "--threads", "1", "--kv-tokens", "4096"]
    with (
        daemon() as running,
        subprocess.Popen(
            [*command, "--stack", running.path], stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "--server" in line)
            address = re.search(r"--server (\S+)", line)
            assert address is not None
            told = edge(address[1], tiny_pair[1], "--stack", running.path)
            assert told == edge(tiny_server, tiny_pair[1])
        finally:
            server.terminate()
            server.communicate()
        assert server.returncode == 0


@pytest.mark.parametrize("module", ["shm", "tcp"])
def test_a_server_s_certificate_is_new_in_the_stack_too(
    tiny_pair: tuple[Path, Path], tmp_path: Path, module: str
) -> None:
    with daemon("--module", module) as running:
        read_again_at_sighup(tiny_pair, tmp_path, "--stack", running.path)


def ask(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.stack", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_operator_asks_and_moves_a_daemon() -> None:
    with daemon() as running:
        assert ask("--socket", running.path, "--move", "tcp").returncode == 0
        assert '"module": "tcp"' in ask("--socket", running.path, "--status").stdout
        second = ask("--socket", running.path)
        assert second.returncode == 2
        assert f"another specedge-stack has {running.path}" in second.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--socket is missing: where guests attach"),
        (["--socket"], "option --socket has no value"),
        (["--what", "1"], "unknown option --what"),
        (["--delay-ms", "10001"], "--delay-ms is 10001; expected a number from 0 to 10000"),
        (["--loss", "0.6"], "--loss is 0.6; expected a number from 0 to 0.5"),
        (["--rate", "1x"], "--rate is 1x; expected a number from 0 to 1e+12"),
        (["--user-rate", "nan"], "--user-rate is nan; expected a number from 0 to 1e+12"),
        (["--module", "udp"], "--module is udp; it takes one of shm, unix, tcp, emulated"),
        (["--share-by", "host"], "--share-by is host; it takes user or process"),
    ],
)
def test_a_wrong_option_of_the_daemon_is_a_sentence(options: list[str], sentence: str) -> None:
    done = subprocess.run([PROGRAM, *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"specedge-stack: {sentence}\n"


def test_a_full_daemon_says_so_and_still_answers_its_operator() -> None:
    with daemon("--max-guests", "1") as running:
        guest = _stack.Guest(running.path)
        with pytest.raises(RuntimeError, match="as many guests as it takes are attached"):
            _stack.Guest(running.path)
        assert '"guests": 1' in ask("--socket", running.path, "--status").stdout
        guest.detach()


def test_of_daemons_that_start_at_once_one_has_the_socket() -> None:
    """Where one that was killed has left its socket."""
    for _ in range(3):
        with TemporaryDirectory() as folder:
            path = f"{folder}/s"
            killed = start(path)
            killed.process.kill()
            killed.process.communicate()
            command = [PROGRAM, "--socket", path]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            all_of_them = [subprocess.Popen(command, **pipes) for _ in range(8)]
            said = [process.stdout.readline() for process in all_of_them]
            assert sum(path in line for line in said) == 1
            winner = next(one for one, line in zip(all_of_them, said, strict=True) if line)
            assert '"guests": 0' in _stack.status(path)
            winner.terminate()
            for process in all_of_them:
                _, complaint = process.communicate(timeout=30)
                assert process.returncode == (0 if process is winner else 2)
                assert process is winner or f"another specedge-stack has {path}" in complaint
            assert not os.listdir(folder)


@pytest.mark.long
def test_a_daemon_makes_its_socket_under_a_lock_of_the_folder() -> None:
    """It does not wait for ever for whoever keeps it."""
    with TemporaryDirectory() as folder:
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = ask("--socket", f"{folder}/s")
        assert refused.returncode == 2
        assert "another program keeps a lock of it" in refused.stderr
        assert not os.listdir(folder)
        os.close(lock)


def test_guests_that_come_to_be_put_out_fill_no_log() -> None:
    header = struct.Struct("7I")
    version = 4  # csrc/stack/element.h
    attach = header.pack(1, version, 0, 0, 16, 16, 1 << 17)
    terms = header.pack(2, version, 9, 0, 0, 0, 0)
    many = 40

    with TemporaryDirectory() as folder:
        path = f"{folder}/s"
        command = [PROGRAM, "--socket", path]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            start_s = time.monotonic()
            for _ in range(many):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
                    guest.connect(path)
                    guest.send(attach)
                    guest.recv(100)
                    for slot in range(66):  # the terms of so many that it never connects
                        with suppress(BrokenPipeError, ConnectionResetError):
                            guest.send(terms[:8] + slot.to_bytes(4, "little") + terms[12:])
                    with suppress(ConnectionResetError):
                        assert not guest.recv(100)  # put out
            took_s = time.monotonic() - start_s
            process.terminate()
            _, log = process.communicate(timeout=30)
    lines = [line for line in log.splitlines() if "put out: it keeps terms" in line]
    others = sum(map(int, re.findall(r"and (\d+) others before it", log)))
    assert 1 <= len(lines) <= took_s + 2
    assert len(lines) + others <= many
    assert took_s < 1 or others > 0


def test_a_daemon_that_ends_leaves_anothers_socket() -> None:
    with TemporaryDirectory() as folder:
        path = f"{folder}/s"
        first = start(path)
        os.unlink(path)
        second = start(path)
        first.process.terminate()
        assert first.process.wait(30) == 0
        assert second.status()["guests"] == 0
        second.process.terminate()
        assert second.process.wait(30) == 0
        assert not os.listdir(folder)
        for one in (first, second):
            one.process.communicate()


def test_a_daemon_whose_folder_has_gone_ends_well() -> None:
    with TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/below")
        running = start(f"{folder}/below/s")
        shutil.rmtree(f"{folder}/below")
        running.process.terminate()
        assert running.process.wait(30) == 0
        running.process.communicate()


def test_mistakes_are_told_in_a_sentence() -> None:
    for options, told in (
        ((), "--socket is missing"),
        (("--socket", "/nowhere/s", "--status"), "no specedge-stack at /nowhere/s: No such file"),
        (("--socket", "/nowhere/s"), "cannot listen at --socket /nowhere/s: No such file"),
        (("--socket", str(Path(__file__))), f"--socket {__file__} is there already"),
        (("--socket", "s" * 200), "longer than the 107 characters"),
        (("--socket", "s", "--loss", "2"), "--loss is 2.0; the most it takes is 0.5"),
    ):
        done = ask(*options)
        assert done.returncode == 2, done
        assert told in done.stderr
        assert "Traceback" not in done.stderr
