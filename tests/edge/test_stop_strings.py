"""Stop strings over a real server: plain decoding's text up to them, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config import EdgeConfig
from runtime.edge.client import Edge, generate
from tests.server.process import Process, server_process


@pytest.fixture(scope="module")
def server(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """It waits for drafts: a request that nobody ends goes on for ever."""
    options = ["--model", str(tiny_pair[0]), "--threads", "1", "--no-pipeline", "--credits", "open"]
    with server_process(tmp_path_factory.mktemp("server") / "log", *options) as process:
        yield process


@pytest.fixture
def options(tiny_pair: tuple[Path, Path], server: Process) -> dict[str, object]:
    host, port = server.address
    return {"server": f"{host}:{port}", "draft": str(tiny_pair[1]), "max_tokens": 40}


def text_of(edge: Edge, **asked: object) -> str:
    return "".join(piece.text for piece in edge.generate("stop", **asked))


def test_an_answer_ends_before_its_stop_string(options: dict[str, object], eager: None) -> None:
    with Edge(EdgeConfig(**options)) as edge:
        whole, ids = text_of(edge), list(edge.last_ids)
        assert len(whole) > 20
        for start, length in ((0, 1), (5, 1), (6, 4), (11, 9), (len(whole) - 2, 2)):
            stop = whole[start : start + length]
            ends = []
            for budget in (0, 32):
                answer = text_of(edge, stop=[stop, "never"], max_budget=budget)
                assert answer == whole[: whole.find(stop)]
                assert ids[: len(edge.last_ids)] == edge.last_ids
                assert edge.statistics.tokens == len(edge.last_ids)
                ends.append(len(edge.last_ids))
            assert ends[0] == ends[1], "drafted or not, it ends with the same token"
        assert text_of(edge, stop="never") == whole
        # what may be the beginning of a stop string is held, and given when nothing more comes
        assert text_of(edge, stop=[whole[-3:] + "x"]) == whole
    assert (
        "".join(generate("stop", **options, stop=[whole[6:10]])) == whole[: whole.find(whole[6:10])]
    )


def test_the_server_hears_at_once_that_it_is_enough(
    options: dict[str, object], server: Process
) -> None:
    with Edge(EdgeConfig(**options)) as edge:
        stop = text_of(edge)[4:6]
        ended = server.samples()["request_success_total", "length"]
        text_of(edge, stop=stop, max_tokens=900)
        assert edge.statistics.tokens < 40
        now = server.samples_once(lambda samples: samples["num_requests_running",] == 0)
        assert now["num_requests_running",] == 0
        assert now["request_success_total", "length"] == ended


def test_stop_strings_survive_the_edge(options: dict[str, object], tmp_path: Path) -> None:
    """An edge that goes on with the answer of another ends where that one would have ended."""
    path = tmp_path / "answer"
    with Edge(EdgeConfig(**options)) as edge:
        whole = text_of(edge)
    stop = whole[20:24]
    asked = EdgeConfig(**options, resume_file=str(path), max_budget=0, stop=[stop])
    with Edge(asked) as edge:
        stream = edge.generate("stop")
        shown = "".join(next(stream).text for _ in range(8))
        stream.close()
    assert path.exists()
    assert whole.startswith(shown)
    with Edge(EdgeConfig(**options, resume_file=str(path))) as edge:
        assert "".join(piece.text for piece in edge.resume()) == whole[: whole.find(stop)]
    assert not path.exists()
