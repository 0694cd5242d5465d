"""What is in deploy/kubernetes/ is valid, agrees with itself, and is true of the server."""

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from runtime.api.app import application as api
from runtime.arguments import parse
from runtime.config import ServerConfig
from runtime.server.door import Door, Identity
from runtime.server.http import application as pages
from runtime.server.metrics import Metrics
from runtime.server.policy.credits import RoundRobin
from runtime.server.policy.pipeline import Pipeline
from runtime.server.schedule.choose import Limits
from runtime.server.schedule.scheduler import Scheduler

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy/kubernetes"
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
CHAPTER = OPERATIONS.split("## On Kubernetes")[1].split("\n## ")[0]
SCHEMAS = json.loads((Path(__file__).parent / "kubernetes_schemas.json").read_text())
OLDEST = "1.32"  # of Kubernetes: preStop.sleep is there by default from 1.30 on

Object = dict[str, Any]


@cache
def manifests() -> dict[tuple[str, str], Object]:
    """All objects, by kind and name, that the kustomizations name."""
    files = [folder / name for folder, kustomization in kustomizations() for name in kustomization]
    objects = chain.from_iterable(yaml.safe_load_all(file.read_text()) for file in files)
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def kustomizations() -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its resources)."""
    for path in sorted(FOLDER.rglob("kustomization.yaml")):
        yield path.parent, yaml.safe_load(path.read_text())["resources"]


def of_kind(kind: str) -> list[Object]:
    return [one for (its_kind, _), one in manifests().items() if its_kind == kind]


def pod(kind: str, name: str) -> Object:
    """The template of its pods."""
    return manifests()[kind, name]["spec"]["template"]


SERVER, FRONT = ("StatefulSet", "specedge"), ("Deployment", "specedge-front")


def container(workload: tuple[str, str]) -> Object:
    (only,) = pod(*workload)["spec"]["containers"]
    return only


def config(workload: tuple[str, str]) -> ServerConfig:
    """What its command line means to the server."""
    return parse(ServerConfig, container(workload)["args"], {}, "server")


def ports(workload: tuple[str, str]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def picker() -> dict[str, Object]:
    """The parameters of the endpoint picker's plugins."""
    read = yaml.safe_load((FOLDER / "openai/picker.yaml").read_text())
    return {plugin["type"]: plugin.get("parameters", {}) for plugin in read["plugins"]}


def test_every_file_is_named_by_a_kustomization() -> None:
    named = {folder / name for folder, names in kustomizations() for name in names}
    given = yaml.safe_load((FOLDER / "openai/kustomization.yaml").read_text())
    named |= {
        FOLDER / "openai" / name for one in given["configMapGenerator"] for name in one["files"]
    }
    assert named == {*FOLDER.rglob("*.yaml")} - {*FOLDER.rglob("kustomization.yaml")}
    images = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]
    assert {one["name"] for one in images} == {
        container(SERVER)["image"],
        container(FRONT)["image"],
    }


def validate(one: Object, version: str) -> None:
    """Raises where a field is wrong, unknown, or of a kind that has no schema here."""
    schema = SCHEMAS.get(f"{one['apiVersion']} {one['kind']}")
    if schema is not None:
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(one["spec"], schema)
        return
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    assert kubernetes_validate.validate(one, version, strict=True) == version


@pytest.mark.parametrize("version", [OLDEST, "1.36"])
def test_every_object_is_valid(version: str) -> None:
    for one in manifests().values():
        validate(one, version)


@pytest.mark.parametrize(
    ("key", "changed", "told"),
    [
        (("Service", "specedge-pods"), {"spec": {"portz": []}}, "portz"),
        (("Service", "specedge-pods"), {"kind": "Nothing"}, None),
        (("StatefulSet", "specedge"), {"spec": {}}, "required"),
        (("InferencePool", "specedge"), {"spec": {}}, "required"),
        (("HTTPRoute", "specedge"), {"spec": {"rules": [{"timeouts": {"request": 0}}]}}, "string"),
    ],
)
def test_what_is_wrong_is_found(key: tuple[str, str], changed: Object, told: str | None) -> None:
    pytest.importorskip("kubernetes_validate")
    with pytest.raises(Exception, match=told) as raised:
        validate({**manifests()[key], **changed}, OLDEST)
    assert type(raised.value).__name__ in ("ValidationError", "SchemaNotFoundError")


def test_the_servers_listen_where_they_are_looked_for() -> None:
    for workload in (SERVER, FRONT):
        options = config(workload)
        expected = {"edges": options.port, "pages": int(options.http.rpartition(":")[2])}
        if options.openai:
            expected["openai"] = int(options.openai.rpartition(":")[2])
        assert ports(workload) == expected
        assert options.host == "0.0.0.0"
        assert options.users, "who may ask"
        assert options.tls_certificate, "nobody reads along"
    assert config(FRONT).replicas
    assert not config(SERVER).replicas


@pytest.mark.parametrize("workload", [SERVER, FRONT])
def test_probes_ask_pages_that_there_are(workload: tuple[str, str]) -> None:
    routes = {route.path for route in pages(lambda: "", Metrics().registry).routes}
    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container(workload)[probe]["httpGet"]
        assert asked["port"] == "pages"
        assert asked["path"] in routes
        paths[probe] = asked["path"]
    # /ready is 503 while a model is loaded or a server drains, which is no reason to end it
    assert paths == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }


@pytest.mark.parametrize("workload", [SERVER, FRONT])
def test_a_pod_has_the_time_to_drain(workload: tuple[str, str]) -> None:
    waits = container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
    # a front has no answers to end
    drain_s = 0 if config(workload).replicas else config(workload).drain_s
    assert pod(*workload)["spec"]["terminationGracePeriodSeconds"] > waits + drain_s


def labels(workload: tuple[str, str]) -> dict[str, str]:
    """Those of its pods; in place of a number, which Kubernetes adds, the pods are all alike."""
    made = pod(*workload)["metadata"]["labels"]
    assert manifests()[workload]["spec"]["selector"]["matchLabels"] == made
    return made


def test_selectors_find_the_pods_that_are_meant() -> None:
    for name, workload in (("specedge-pods", SERVER), ("specedge-front", FRONT)):
        service = manifests()["Service", name]["spec"]
        assert service["selector"] == labels(workload)
        for port in service["ports"]:
            assert port["port"] == ports(workload)[port["targetPort"]]
    for name, workload in (("specedge", SERVER), ("specedge-front", FRONT)):
        budget = manifests()["PodDisruptionBudget", name]["spec"]
        assert budget["selector"]["matchLabels"] == labels(workload)
    assert labels(SERVER) != labels(FRONT)
    pool = manifests()["InferencePool", "specedge"]["spec"]
    assert pool["selector"]["matchLabels"] == labels(SERVER)
    assert [port["number"] for port in pool["targetPorts"]] == [ports(SERVER)["openai"]]
    monitor = manifests()["PodMonitor", "specedge"]["spec"]
    for workload in (SERVER, FRONT):
        assert monitor["selector"]["matchLabels"].items() <= labels(workload).items()
        assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= {*ports(workload)}
        job = labels(workload)[monitor["jobLabel"]]
    asked = re.findall(r'job=~"([^"]+)"', (ROOT / "deploy/alerts.yaml").read_text())
    assert asked
    assert all(re.fullmatch(one, job) for one in asked)


def test_the_operators_alerts_are_those_of_the_file() -> None:
    plain = yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())
    assert manifests()["PrometheusRule", "specedge"]["spec"] == plain


def opened(workload: tuple[str, str]) -> dict[str, list[Any]]:
    """From where the network policies let anybody connect to a port of its pods; None: anywhere."""
    found: dict[str, list[Any]] = {}
    for one in of_kind("NetworkPolicy"):
        chosen = one["spec"]["podSelector"]["matchLabels"].items() <= labels(workload).items()
        for rule in one["spec"].get("ingress", []) if chosen else []:
            for port in rule["ports"]:
                found.setdefault(port["port"], []).append(rule.get("from"))
    return found


def test_the_network_lets_the_world_in_to_the_edges_port_alone() -> None:
    for workload in (SERVER, FRONT):
        assert set(opened(workload)) == {*ports(workload)}
        assert [port for port, peers in opened(workload).items() if None in peers] == ["edges"]
        assert all("ipBlock" not in str(peers) for peers in opened(workload).values())
    base = yaml.safe_load_all((FOLDER / "network.yaml").read_text())
    assert "openai" not in str([*base]), "what has no gateway is not opened for one"


def test_a_front_reaches_what_it_asks() -> None:
    policy = manifests()["NetworkPolicy", "specedge-front"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels(FRONT)
    pages, names = policy["egress"]
    (peer,) = pages["to"]
    assert peer["podSelector"]["matchLabels"] == labels(SERVER)
    (port,) = {port["port"] for port in pages["ports"]}
    assert {replica.pages[1] for replica in config(FRONT).replicas if replica.pages} == {
        ports(SERVER)[port]
    }
    assert {(one["protocol"], one["port"]) for one in names["ports"]} == {("UDP", 53), ("TCP", 53)}


def test_the_front_knows_every_replica_that_there_may_be() -> None:
    most = manifests()["HorizontalPodAutoscaler", "specedge"]["spec"]
    assert most["scaleTargetRef"] == {
        "apiVersion": manifests()[SERVER]["apiVersion"],
        "kind": SERVER[0],
        "name": SERVER[1],
    }
    pods = [f"{SERVER[1]}-{number}" for number in range(most["maxReplicas"])]
    spec, options = manifests()[SERVER]["spec"], config(SERVER)
    assert "replicas" not in spec, "an apply would undo what the autoscaler did"
    replicas = config(FRONT).replicas
    assert [replica.pages for replica in replicas] == [
        (f"{name}.{spec['serviceName']}", ports(SERVER)["pages"]) for name in pods
    ]
    for name, replica in zip(pods, replicas, strict=True):
        service = manifests()["Service", name]
        hostname = service["metadata"]["annotations"]["external-dns.alpha.kubernetes.io/hostname"]
        assert replica.edges == (hostname, options.port)
        assert hostname.split(".")[0] == name
        assert service["spec"]["selector"] == {"statefulset.kubernetes.io/pod-name": name}
        assert service["spec"]["ports"] == [
            {"name": "edges", "port": options.port, "targetPort": "edges"}
        ]
    exposed = [one for one in of_kind("Service") if one["spec"].get("type") == "LoadBalancer"]
    assert len(exposed) == len(pods) + 1
    for service in exposed:
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["edges"]
        assert service["spec"]["externalTrafficPolicy"] == "Local", "addresses of edges are kept"


def test_the_scaler_looks_at_a_metric_that_the_page_explains() -> None:
    (metric,) = manifests()["HorizontalPodAutoscaler", "specedge"]["spec"]["metrics"]
    (snippet,) = re.findall(r"```yaml\n(rules:.*?)```", CHAPTER, flags=re.S)
    (rule,) = yaml.safe_load(snippet)["rules"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = re.match(r"[\w:]+", rule["seriesQuery"])
    assert series is not None
    assert series[0] in families()


@pytest.mark.parametrize("workload", [SERVER, FRONT])
def test_secrets_are_where_the_command_line_says(workload: tuple[str, str]) -> None:
    spec, options = pod(*workload)["spec"], config(workload)
    (mount,) = [one for one in container(workload)["volumeMounts"] if one["name"] == "secrets"]
    (volume,) = [one for one in spec["volumes"] if one["name"] == "secrets"]
    assert "subPath" not in mount, "what is changed would not reach the server"
    assert volume["projected"]["defaultMode"] == 0o440, "the server refuses what others may read"
    mounted = {source["secret"]["name"] for source in volume["projected"]["sources"]}
    made = {
        "specedge-users": ["users.toml"],
        "specedge-tls": [
            "tls.crt",
            "tls.key",
        ],  # the keys of every secret of type kubernetes.io/tls
    }
    assert mounted == {*made}
    assert "kubectl create secret generic specedge-users --from-file=users.toml" in CHAPTER
    assert "kubectl create secret tls specedge-tls --cert=" in CHAPTER
    names = {f"{mount['mountPath']}/{name}" for keys in made.values() for name in keys}
    assert {options.users, options.tls_certificate, options.tls_key} == names


@pytest.mark.parametrize("workload", [SERVER, FRONT])
def test_a_pod_has_no_more_rights_than_it_needs(workload: tuple[str, str]) -> None:
    spec, own = pod(*workload)["spec"], container(workload)["securityContext"]
    (uid,) = re.findall(r"--uid (\d+)", (ROOT / "deploy/Dockerfile").read_text())
    outer = spec["securityContext"]
    assert outer["runAsNonRoot"]
    # the group's right to read a secret of root is all that the server has
    assert {outer["runAsUser"], outer["runAsGroup"], outer["fsGroup"]} == {int(uid)}
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]


def test_models_are_kept_where_the_image_looks_for_them() -> None:
    (kept,) = re.findall(r"HF_HOME=(\S+)", (ROOT / "deploy/Dockerfile").read_text())
    (claim,) = manifests()[SERVER]["spec"]["volumeClaimTemplates"]
    mounts = {one["name"]: one["mountPath"] for one in container(SERVER)["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == kept


def test_the_route_leads_to_the_api() -> None:
    (rule,) = manifests()["HTTPRoute", "specedge"]["spec"]["rules"]
    (match,), (backend,) = rule["matches"], rule["backendRefs"]
    pool = manifests()["InferencePool", backend["name"]]
    assert backend["kind"] == pool["kind"]
    assert pool["apiVersion"].split("/")[0] == backend["group"]
    paths = [route.path for route in api(lambda request: None).routes]  # type: ignore[arg-type]
    assert {"/v1/completions", "/v1/chat/completions"} <= {*paths}, "what the picker can read"
    assert match["path"]["type"] == "PathPrefix"
    assert all(path.startswith(match["path"]["value"] + "/") for path in paths if "/v1" in path)
    # a pool has no protocol for HTTPS
    assert pool["spec"]["appProtocol"] == "http"
    assert not config(SERVER).openai_tls


@cache
def families() -> dict[str, Metric]:
    """What a scrape of a server with two adapters reads, in Prometheus' text format."""
    limits = Limits(4, 4, 4, 64, 8, 16, page_size=16, n_pages=1024)
    made, identity = (
        Metrics(),
        Identity("m", 8, lambda rows: b"", 64, frozenset(), None, ("poet", "lawyer")),
    )
    made.watch(
        Door(ServerConfig(), identity),
        Scheduler(limits, lambda n: [], lambda pages: None),
        Pipeline(4, 64, RoundRobin()),
    )
    text = generate_latest(made.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_the_endpoint_picker_finds_what_it_asks_for() -> None:
    """Proposal 003 of the Gateway API inference extension, as llm-d's router reads it."""
    parameters = picker()["core-metrics-extractor"]
    (engine,) = parameters["engineConfigs"]
    assert parameters["defaultEngine"] == engine["name"]
    for spec in ("queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec"):
        (sample,) = families()[engine[spec]].samples
        assert (families()[engine[spec]].type, sample.labels) == ("gauge", {})
        assert 0 <= sample.value <= 1, spec  # of the cache a share, of requests none yet
    (cache_info,) = families()[engine["cacheInfoSpec"]].samples
    assert cache_info.labels == {"block_size": "16", "num_gpu_blocks": "1024"}
    (adapters,) = families()[engine["loraSpec"]].samples
    assert adapters.labels == {
        "max_lora": "2",
        "running_lora_adapters": "poet,lawyer",
        "waiting_lora_adapters": "",
    }
    assert adapters.value >= 0, "of several the latest would count; there is one"
    for name in (engine[spec] for spec in engine if spec.endswith("Spec")):
        assert f"`{name}`" in CHAPTER


def test_the_endpoint_picker_looks_at_the_pages() -> None:
    source = picker()["metrics-data-source"]
    assert (source["scheme"], source["path"]) == ("http", "/metrics")
    assert source["port"] == ports(SERVER)["pages"]


def test_a_server_without_adapters_tells_of_none() -> None:
    made = Metrics()
    made.watch(Door(ServerConfig(), None))
    names = {s.name for family in made.registry.collect() for s in family.samples}
    assert "specedge:lora_requests_info" not in names
