"""A server process that a test may ask over HTTP, signal and read the log of."""

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
from tests.processes import Child

Samples = dict[tuple[str, ...], float]


@dataclass
class Process:
    """`url` is that of its HTTP side, `address` that for edges: it waits for the model."""

    process: Child
    url: str
    log: Path

    @cached_property
    def address(self) -> tuple[str, int]:
        return parse_address(self.process.next_line("--server ").split("--server ")[1].split()[0])

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
    ports = ("--port", "0", "--http", "127.0.0.1:0")
    process = Child("runtime.server", *ports, *options, errors=log, descriptors=descriptors)
    try:
        yield Process(process, process.next_line("/health").split("/health")[0], log)
    finally:
        process.kill()
        process.wait()
        process.close()
