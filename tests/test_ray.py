"""Replicas under Ray: how many, which number each has, and a cluster of this machine's own.

Ray is an extra, and takes its time: the cluster's tests are skipped where it is not installed.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from runtime import Answer, ConfigError, Edge, EdgeConfig, Server, ServerConfig
from runtime.ray.front import SILENCE_S, Members, Word
from runtime.ray.scaling import policy, wanted
from runtime.server.router import Router
from runtime.server.users import add_user

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("now", "lines", "loads", "expected"),
    [
        (2, [], [], 2),  # nobody has told anything yet
        (1, [0.9], [1.2], 1),
        (1, [1.1], [1.4], 2),
        (1, [3.5], [9.0], 4),
        (2, [1.5], [1.5], 2),  # the second still loads: its start is what the first one waits for
        (2, [3.0, 0.0], [2.0, 1.0], 3),
        (2, [0.0, 0.0], [0.6, 0.0], 2),
        (2, [0.0, 0.0], [0.5, 0.0], 1),
        (1, [0.0], [0.0], 1),
        (4, [0.0] * 4, [0.0] * 4, 3),
    ],
)
def test_lines_make_replicas_and_idleness_gives_one_up(
    now: int, lines: list[float], loads: list[float], expected: int
) -> None:
    assert wanted(now, lines, loads) == expected
    told = {name: dict(enumerate(value)) for name, value in (("line", lines), ("load", loads))}
    context = SimpleNamespace(
        target_num_replicas=now,
        aggregated_metrics={name: values for name, values in told.items() if values},
    )
    assert policy(context) == (expected, {})


def test_the_number_of_replicas_comes_to_rest() -> None:
    """Whatever the load: what is shared evenly neither grows for ever nor goes up and down."""
    rng = random.Random(1)
    for _ in range(300):
        places, most_waiting, requests = rng.randint(1, 64), rng.randint(1, 16), rng.randint(0, 999)
        now, seen = rng.randint(1, 8), []
        for _ in range(1100):
            each = requests / now
            line = max(each - places, 0.0) / most_waiting
            seen.append(now)
            now = wanted(now, [line] * now, [each / places] * now)
            assert now >= 1
        assert len({*seen[-20:]}) == 1, (places, most_waiting, requests, seen[-5:])


def word(number: int | None, port: int, unready: str = "", edges: int = 0) -> Word:
    return Word(number, "10.0.0.1", port, unready, edges)


def names(router: Router) -> dict[int, str]:
    """By port."""
    return {one.address.edges[1]: one.address.name for one in router.replicas}


def test_what_takes_the_place_of_a_replica_takes_its_number() -> None:
    members = Members()
    assert [members.heard(word(None, port), 0.0) for port in (1, 2, 3)] == [0, 1, 2]
    for port in (1, 3):
        assert members.heard(word(port - 1, port), 2.0) == port - 1
    members.forget(SILENCE_S)
    assert {*names(members.router)} == {1, 2, 3}, "silent, and not yet for too long"
    members.forget(SILENCE_S + 0.1)
    assert names(members.router) == {1: "replica 0", 3: "replica 2"}
    assert members.heard(word(None, 9), 3.0) == 1
    assert names(members.router)[9] == "replica 1"


def test_a_front_that_is_new_leaves_replicas_their_numbers() -> None:
    members = Members()
    assert members.heard(word(2, 7), 0.0) == 2
    assert members.heard(word(None, 8), 0.0) == 0
    # another one has come first: a number has one replica
    assert members.heard(word(0, 9), 0.0) == 1
    assert names(members.router) == {7: "replica 2", 8: "replica 0", 9: "replica 1"}


def test_edges_go_where_they_are_taken() -> None:
    members = Members()
    assert "none is known" in members.router.unready
    members.heard(word(None, 1, "the server is stopping"), 0.0)
    assert "replica 0: the server is stopping" in members.router.unready
    assert members.router.choose("anyone") is None
    members.heard(word(None, 2, edges=7), 0.0)
    chosen = members.router.choose("anyone")
    assert chosen is not None
    assert (chosen.address.edges, chosen.edges) == (("10.0.0.1", 2), 7)


LONG = 500
People = tuple[Path, list[tuple[str, Path]]]  # a file of users, and names with files of tokens
SERVER = {"weights": "float32", "kv_tokens": 16384, "max_requests": 4}


def test_what_is_no_option_is_refused_in_words() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'specedge[ray]')")
    from runtime.ray.application import Args

    assert Args(model="m", max_batch="4", cpus="2").server_config().max_batch == 4
    assert Args(cpus=2).server_config().threads == 2
    with pytest.raises(ConfigError, match="did you mean model"):
        Args(modell="m").server_config()
    with pytest.raises(ConfigError, match="leave it out with Ray"):
        Args(stack="/run/x").server_config()
    with pytest.raises(ConfigError, match="autoscaling has 'upscale_delay', which Ray's has not"):
        Args(autoscaling={"upscale_delay": 1}).server_config()
    with pytest.raises(ConfigError, match="spill_disk_gib is for"):
        Args(spill_disk_gib=1).server_config()
    with pytest.raises(ConfigError, match="less than min_replicas"):
        Args(min_replicas=5).server_config()
    with pytest.raises(ConfigError, match="must then prove who they are"):
        Args(host="0.0.0.0").server_config()


def test_the_file_for_serve_deploy_is_one() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'specedge[ray]')")
    from ray.serve.schema import ServeDeploySchema

    from runtime.ray import app
    from runtime.ray.application import Args

    (one,) = ServeDeploySchema.model_validate(
        yaml.safe_load((ROOT / "deploy/ray.yaml").read_text(encoding="utf-8"))
    ).applications
    assert one.import_path == "runtime.ray:app"
    assert callable(app)
    config = Args(**one.args).server_config()
    assert config.host == "0.0.0.0"
    assert config.users


@dataclass
class Cluster:
    """The application on a cluster of this machine's own."""

    front: Any  # Ray's handle

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.front.address.remote().result())

    def ready(self) -> int:
        """To how many replicas edges are sent."""
        return sum(not reason for reason in self.front.replicas.remote().result().values())

    def states(self) -> dict[str, int]:
        """As Ray sees replicas: how many are in which state."""
        from ray import serve

        found = serve.status().applications["specedge"].deployments["Server"].replica_states
        return {str(state): number for state, number in found.items() if number}

    def kill_one(self) -> None:
        """As sudden as kill -9."""
        import ray

        known = ray.util.list_named_actors(all_namespaces=True)
        victim = next(one for one in known if "#Server#" in one["name"])
        ray.kill(ray.get_actor(victim["name"], namespace=victim["namespace"]))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    """A file of users, and two of them, one for each of two replicas, with their tokens."""
    folder = tmp_path_factory.mktemp("people")
    members = Members()
    for port in (1, 2):
        members.heard(word(None, port), 0.0)
    found: dict[str, str] = {}
    for number in count():
        chosen = members.router.choose(f"user-{number}")
        assert chosen is not None
        chosen.sent = 0
        found.setdefault(chosen.address.name, f"user-{number}")
        if len(found) == 2:
            break
    users = []
    for name in found.values():
        file = folder / f"{name}.token"
        file.touch(0o600)
        file.write_text(add_user(folder / "users.toml", name), encoding="utf-8")
        users.append((name, file))
    return folder / "users.toml", users


@pytest.fixture(scope="module")
def cluster(tiny_pair: tuple[Path, Path], people: People) -> Iterator[Cluster]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'specedge[ray]')")
    from ray import serve

    from runtime.ray import app
    from runtime.ray.application import Args

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=1 << 27, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    here = {"port": 0, "http": "127.0.0.1:0", "users": str(people[0]), "cpus": 0.5, "threads": 1}
    quickly = {"metrics_interval_s": 1, "look_back_period_s": 2}
    quickly |= {"upscale_delay_s": 0, "downscale_delay_s": 3}
    scaling = {"max_replicas": 2, "most_waiting": 1, "autoscaling": quickly}
    try:
        args = Args(model=str(tiny_pair[0]), **here, **scaling, **SERVER)
        serve.run(app(args), name="specedge", route_prefix=None)
        yield Cluster(serve.get_deployment_handle("Front", "specedge"))
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def plain(tiny_pair: tuple[Path, Path]) -> list[int]:
    """What one server says alone, without a draft."""
    with (
        Server(ServerConfig(model=str(tiny_pair[0]), port=0, http="", **SERVER)) as server,
        Edge(EdgeConfig(server=server.address, draft=str(tiny_pair[1]), max_budget=0)) as edge,
    ):
        return written(ask(edge))


def ask(edge: Edge) -> Answer:
    return edge.generate("Once", raw=True, max_tokens=LONG, temperature=1.0, seed=3)


def begun(edge: Edge) -> Callable[[], list[int]]:
    """What waits for the rest of an answer of which something has come."""
    answer = ask(edge)
    pieces = iter(answer)
    next(pieces)

    def rest() -> list[int]:
        for _ in pieces:
            pass
        return [*answer.tokens]

    return rest


def written(answer: Answer) -> list[int]:
    """Its tokens, once it has come to its end."""
    for _ in answer:
        pass
    return [*answer.tokens]


@contextmanager
def edges_of(cluster: Cluster, draft: Path, people: People) -> Iterator[list[Edge]]:
    """Two new ones, one at each of two replicas."""
    there = {"server": cluster.address, "draft": str(draft)}
    with ExitStack() as stack:
        yield [
            stack.enter_context(Edge(EdgeConfig(**there, user=name, token_file=str(file))))
            for name, file in people[1]
        ]


def connections(edges: list[Edge]) -> list[int]:
    """How many each has had so far."""
    return [edge._worker.uplink.opened for edge in edges]


@pytest.mark.timeout(900)  # Ray starts six processes that import torch
def test_replicas_come_and_die_and_go_and_no_text_changes(
    cluster: Cluster, tiny_pair: tuple[Path, Path], people: People, plain: list[int]
) -> None:
    new_edges = partial(edges_of, cluster, tiny_pair[1], people)

    def line_up(edges: list[Edge]) -> None:
        """Until it has made one replica more, of which edges are told."""
        while cluster.ready() != 2:
            answers = [ask(edge) for edge in edges for _ in range(4)]
            assert [written(answer) for answer in answers] == [plain] * 8

    assert cluster.ready() == 1
    with new_edges() as early:
        line_up(early)
        with new_edges() as edges:  # one of two dies, and its answer goes on at the other one
            rests = [begun(edge) for edge in edges]
            cluster.kill_one()
            assert [rest() for rest in rests] == [plain, plain]
            assert sorted(connections(edges)) == [1, 2]

        line_up(early)
        with new_edges() as edges:  # one goes, since little is to do; each has something
            while cluster.states() != {"RUNNING": 1}:
                answers = [ask(edge) for edge in edges]
                assert [written(answer) for answer in answers] == [plain, plain]
            assert [written(ask(edge)) for edge in edges] == [plain, plain]
            assert sorted(connections(edges)) == [1, 2]

            rests = [begun(edge) for edge in edges]  # the last one dies, and Ray starts another
            cluster.kill_one()
            assert [rest() for rest in rests] == [plain, plain]
            assert sorted(connections(edges)) == [2, 3]
