"""A server process that a test may ask over HTTP, signal and read the log of."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from runtime.config import parse_address

Samples = dict[tuple[str, ...], float]


@dataclass
class Process:
    """`url` is that of its HTTP side, `address` that for edges: it waits for the model."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @cached_property
    def address(self) -> tuple[str, int]:
        return parse_address(_line(self.process, "--server").split("--server ")[1].split()[0])

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(self.url + path, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def samples(self) -> Samples:
        return samples(self.get("/metrics")[1])

    def samples_once(self, settled: Callable[[Samples], bool]) -> Samples:
        """As soon as they are as expected, or as they are after half a minute."""
        deadline_s = time.monotonic() + 30
        while not settled(now := self.samples()) and time.monotonic() < deadline_s:
            pass
        return now


def samples(page: str) -> Samples:
    """(name without specedge:, values of the labels...) -> value."""
    return {
        (sample.name.removeprefix("specedge:"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@contextmanager
def server_process(log: Path, *options: str, descriptors: int = 0) -> Iterator[Process]:
    """With these options; with so many `descriptors`, if a number is given."""
    limit = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"] if descriptors else []
    command = [
        *limit,
        sys.executable,
        "-m",
        "runtime.server",
        "--port",
        "0",
        "--http",
        "127.0.0.1:0",
    ]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield Process(process, _line(process, "/health").split("/health")[0], log)
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    line = next((line for line in process.stdout if word in line), None)
    assert line is not None, f"the server ended before it said {word}"
    return line
