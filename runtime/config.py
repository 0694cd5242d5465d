"""Options of the two processes: one frozen dataclass each, made once, never changed.

How people give them is in arguments.py. This module imports nothing heavy: --help must answer at
once.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from runtime.constraint import Constraint
from runtime.options import Checked, option
from runtime.options import ConfigError as ConfigError  # with whose options it is raised
from runtime.system import cpu_quota

CREDITS = ("open", "drr")
NO_MODEL = "none"  # in place of the name of a draft
FLOATS = ("float32", "bfloat16", "float16")
WEIGHTS = (
    "stored", *FLOATS, "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"
)  # fmt: skip
SPINS = "2000"  # about a tenth of a millisecond: the gaps within a step are shorter
U64_MAX = 2**64 - 1
ADAPTER_NAME, MOST_ADAPTERS = re.compile(r"[A-Za-z0-9._@-]{1,64}"), 128  # told in one message
MOST_BIASES, MOST_BIAS, MOST_LOGPROBS = 1024, 100, 20  # that a request carries


@dataclass(frozen=True)
class Options(Checked):
    """What server and edge share."""

    threads: int = option(
        0,
        "CPU threads for the model; 0 for one a CPU, or what a cgroup allows, less one",
        minimum=0,
        maximum=1024,
    )
    weights: str = option(
        "stored",
        "how weights run: as they are stored, or all as one type or format",
        choices=WEIGHTS,
    )
    activations: str = option(
        "rounded",
        "on a CPU: inputs of products with quantised weights, rounded to 8 bits, or exact",
        choices=("rounded", "exact"),
    )
    batch_invariant: bool = option(
        True,
        "on a GPU: text that does not depend on who else is served, as on a CPU always; costs time",
    )
    kv_dtype: str = option(
        "same",
        "type of keys and values; same as what the model computes in: float32 on a CPU",
        choices=("same", *FLOATS, "float8_e4m3"),
    )
    backend: str = option(
        "auto",
        "whose code runs the model: own for the families it knows, transformers for all others",
        choices=("auto", "own", "transformers"),
    )
    device: str = option("auto", "where the model runs: auto, cpu, cuda or cuda:N")
    log_level: str = option("warning", "log verbosity", choices=("debug", "info", "warning"))
    log_format: str = option(
        "text", "one line an event, for people or machines", choices=("text", "json")
    )


MAX_REPLICA_BYTES = 255  # of an address that a message can tell an edge


class ReplicaAddress(NamedTuple):
    """Where a replica listens; `name` is how edges reach it, and what is hashed."""

    name: str
    edges: tuple[str, int]
    pages: tuple[str, int] | None  # of its --http; None: whether it listens is all that is known

    @classmethod
    def parse(cls, text: str) -> "ReplicaAddress":
        """host:port or host:port=host:port. Raises ConfigError."""
        name, has_pages, pages = text.partition("=")
        edges = parse_address(name, "--redirect")
        if len(name.encode()) > MAX_REPLICA_BYTES:
            raise ConfigError(f"--redirect has {name[:80]!r}, which is no host that edges can ask")
        return cls(name, edges, parse_address(pages, "--redirect") if has_pages else None)


@dataclass(frozen=True)
class ServerConfig(Options):
    """A server: it verifies the trees of many edges with the large model."""

    model: str = option("smollm2", "target: HF directory, .gguf file, hub id, or smollm2")
    adapter: tuple[str, ...] = option(
        (), "NAME=PATH of a LoRA adapter that requests may name, peft's or GGUF; may be repeated"
    )
    user_adapter: tuple[str, ...] = option(
        (), "USER=NAME of the adapter of a user's requests that name none; may be repeated"
    )
    host: str = option("127.0.0.1", "address to listen on; any but loopback needs --users")
    port: int = option(8400, "TCP port; 0 picks a free one", minimum=0)
    stack: str = option("", "socket of the specedge-stack that has the port, in place of TCP here")
    users: str = option("", 'TOML file of users, one name = "token" a line, chmod 600')
    add_user: str = option("", "add this name to --users, print its token, and end")
    tls_certificate: str = option("", "PEM file; with --tls-key, connections are encrypted")
    tls_key: str = option("", "PEM file of the certificate's private key")
    http: str = option(
        "127.0.0.1:8402",
        'address of its page, /health, /ready and /metrics; "" for none',
        empty=True,
    )
    openai: str = option(
        "", "address of the OpenAI API for clients without an edge, such as 127.0.0.1:8403"
    )
    openai_tls: bool = option(
        True, "HTTPS for --openai where there is a certificate; off behind a gateway that encrypts"
    )
    chat_template: str = option(
        "", "file with the chat template for clients of --openai; without it the model's"
    )
    origins: tuple[str, ...] = option(
        (), "web pages that may ask it, beside this machine's own, or *; may be repeated"
    )
    redirect: str = option(
        "", "load no model; send edges to these replicas: host:port=pages-host:port,…"
    )
    max_requests: int = option(64, "requests admitted at once, over all edges", minimum=1)
    max_waiting: int = option(256, "requests that may wait for pages before BUSY", minimum=0)
    max_user_requests: int = option(
        64, "requests of one user, running or waiting", minimum=1, maximum=65535
    )
    max_user_running: int = option(
        0,
        "requests of one user admitted at once; auto: all, or half of them if there are more users",
        minimum=0,
        auto=True,
    )
    silence_s: float = option(
        30.0, "seconds that an edge with requests may be silent until they are ended", minimum=4
    )
    max_connections: int = option(1024, "edges connected at once", minimum=1, maximum=1 << 20)
    max_user_connections: int = option(
        256, "edges of one user connected at once, where there are users", minimum=1
    )
    max_strangers: int = option(
        64, "connections that have not been admitted yet", minimum=1, maximum=65535
    )
    max_context: int = option(0, "longest prompt plus output, tokens; 0 = the model's", minimum=0)
    kv_tokens: int = option(
        0,
        "tokens the KV pool holds, all requests; auto: by the memory there is",
        minimum=0,
        auto=True,
    )
    spill_memory_gib: float = option(
        0.0,
        "GiB of memory for pages that the KV pool gives up: long chats that come back; 0: none",
        minimum=0,
    )
    spill_disk_gib: float = option(
        0.0, "GiB of disk behind that memory, in --spill-folder; 0: none", minimum=0
    )
    spill_folder: str = option("", "a folder of this server alone, for --spill-disk-gib")
    page_size: int = option(16, "tokens in a KV page", minimum=1, maximum=65535)
    max_nodes: int = option(255, "drafted nodes accepted per tree", minimum=0)
    max_batch: int = option(32, "trees verified in one step", minimum=1, maximum=65535)
    max_step_nodes: int = option(512, "nodes verified in one step", minimum=1, maximum=1 << 24)
    chunk_tokens: int = option(256, "prompt tokens that may ride along in one step", minimum=1)
    pipeline: bool = option(True, "tell edges how long and how much to draft; off is an ablation")
    credits: str = option("drr", "who may send a tree: open, drr, or a class, MODULE:NAME")
    rank_silence_s: float = option(
        5.0,
        "under torchrun: seconds that one process may keep the others waiting until all stop",
        minimum=1,
    )
    objective_ms: float = option(
        0.0, "milliseconds a token that 99 of 100 answers shall keep; 0 promises none", minimum=0
    )
    trace: str = option("", "write every step to this file, as lines of JSON")
    drain_s: float = option(30.0, "seconds that SIGTERM leaves to running requests", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.credits not in CREDITS and ":" not in self.credits:
            allowed = ", ".join(CREDITS)
            raise ConfigError(
                f"--credits is {self.credits!r}; it takes one of {allowed}, or a class, MODULE:NAME"
            )
        if self.port > 65535:
            raise ConfigError(f"--port is {self.port}; a TCP port is at most 65535")
        if self.max_requests + self.max_waiting > 65535:
            raise ConfigError("--max-requests and --max-waiting together are at most 65535")
        if self.max_nodes > 255:
            raise ConfigError(f"--max-nodes is {self.max_nodes}; a tree has at most 255")
        if self.max_context == 1:
            raise ConfigError("--max-context is 1; a prompt and its answer have 2 tokens at least")
        if self.max_step_nodes <= self.max_nodes:
            raise ConfigError(
                f"--max-step-nodes is {self.max_step_nodes}; it must exceed --max-nodes "
                f"({self.max_nodes}), or the largest tree could never be verified"
            )
        self._check_host()
        self._check_openai()
        self._check_ports()
        self._check_adapters()
        self._check_spill()
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("--tls-certificate and --tls-key belong together; give both or none")
        if self.add_user and not self.users:
            raise ConfigError("--add-user needs --users FILE, the file to add the name to")
        names = [replica.name for replica in self.replicas]
        if len(set(names)) < len(names):
            raise ConfigError(f"--redirect names a replica twice: {', '.join(names)}")

    def _check_host(self) -> None:
        if not is_host(self.host):
            raise ConfigError(
                f"--host is {self.host!r}; expected an address or a name alone, such as 127.0.0.1 "
                "or ::1 (--port has the port)"
            )
        if not self.users and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached by others, who must then prove who they are: "
                "make a file of users with --users FILE --add-user NAME"
            )

    def _check_openai(self) -> None:
        if not self.openai:
            if self.chat_template:
                raise ConfigError(
                    "--chat-template is for the clients of --openai; give an edge's to the edge"
                )
            return
        host, _ = parse_address(self.openai, "--openai", least_port=0)
        if not self.users and not is_loopback(host):
            raise ConfigError(
                f"--openai {self.openai} can be reached by others, whose API key is their token: "
                "make a file of users with --users FILE --add-user NAME"
            )
        if self.redirect:
            raise ConfigError(
                "--redirect sends edges to replicas and has no model that --openai could ask; "
                "give --openai to the replicas"
            )

    def _check_ports(self) -> None:
        named = {"--port": (self.host, self.port)}
        for option_name, place in (("--http", self.http), ("--openai", self.openai)):
            if place:
                named[option_name] = parse_address(place, option_name, least_port=0)
        for (one, first), (other, second) in combinations(named.items(), 2):
            if first == second and first[1]:
                raise ConfigError(
                    f"{one} and {other} are both port {first[1]} of {first[0]}; each needs its own"
                )

    def _check_spill(self) -> None:
        if self.redirect and self.spill_memory_gib:
            raise ConfigError(
                "--redirect sends edges to replicas and has no pages of its own; give "
                "--spill-memory-gib to the replicas"
            )
        if self.spill_disk_gib and not self.spill_memory_gib:
            raise ConfigError(
                "--spill-disk-gib is behind --spill-memory-gib, through which all pages go; "
                "give both"
            )
        if bool(self.spill_disk_gib) != bool(self.spill_folder):
            raise ConfigError("--spill-disk-gib and --spill-folder go together; give both or none")

    def _check_adapters(self) -> None:
        if self.adapter and self.redirect:
            raise ConfigError(
                "--redirect sends edges to replicas and has no model that adapters could change; "
                "give --adapter to the replicas"
            )
        if len(self.adapter) > MOST_ADAPTERS:
            raise ConfigError(f"{len(self.adapter)} adapters are given; at most {MOST_ADAPTERS}")
        if len(self.adapters) < len(self.adapter):
            raise ConfigError("--adapter gives two adapters one name; names must differ")
        if self.user_adapter and not self.users:
            raise ConfigError("--user-adapter needs --users FILE, the file that names users")
        for user, name in self.adapters_of_users.items():
            if name not in self.adapters:
                raise ConfigError(
                    f"--user-adapter gives {user} the adapter {name!r}; name one of --adapter"
                )

    @property
    def adapters(self) -> Mapping[str, Path]:
        """The paths of `adapter` by name. Raises ConfigError."""
        paths = {}
        for given in self.adapter:
            name, equals, path = given.partition("=")
            if not equals or not path or not ADAPTER_NAME.fullmatch(name):
                raise ConfigError(
                    f"--adapter is {given!r}; expected NAME=PATH, a name of up to 64 letters, "
                    "digits, . _ @ or -"
                )
            paths[name] = Path(path).expanduser()
        return paths

    @property
    def adapters_of_users(self) -> Mapping[str, str]:
        """The names of `user_adapter` by user. Raises ConfigError."""
        given = [one.partition("=") for one in self.user_adapter]
        for user, _, name in given:
            if not user or not name:
                raise ConfigError(f"--user-adapter is {user!r}; expected USER=NAME")
        return {user: name for user, _, name in given}

    @property
    def replicas(self) -> tuple[ReplicaAddress, ...]:
        """The addresses of `redirect`. Raises ConfigError."""
        parts = self.redirect.split(",") if self.redirect else []
        return tuple(ReplicaAddress.parse(part.strip()) for part in parts)


@dataclass(frozen=True)
class EdgeConfig(Options):
    """An edge: it drafts token trees and streams the verified text."""

    batch_invariant: bool = option(
        False, "on a GPU: drafts that do not depend on their batch; no text needs it of an edge"
    )
    server: str = option("127.0.0.1:8400", "host:port of the server")
    stack: str = option("", "socket of the specedge-stack to connect by, in place of TCP here")
    user: str = option("", "name that the server knows; needs --token-file")
    token_file: str = option("", "file with the user's token, chmod 600")
    tls: str = option("", "how to know the server: system, sha256:<hash>, or an authority's file")
    draft: str = option(
        "smollm2-draft",
        "draft: HF directory, .gguf, hub id, or smollm2-draft; none looks words up instead",
    )
    drafter: str = option("", "MODULE:NAME of what makes another drafter than that of --draft")
    tokenizer: str = option(
        "",
        "where the target's tokenizer is, if the draft's is another one; with --draft none and "
        "without this the embedded target's",
    )
    prompt: str | None = option(
        None, "one question; the answer is streamed, then the edge ends", empty=True
    )
    chat: bool = option(False, "talk in the terminal, and answer at --http; /quit leaves")
    serve: bool = option(False, "answer OpenAI's HTTP API at --http until Ctrl-C")
    http: str = option(
        "127.0.0.1:8401",
        'address of the HTTP API of --serve and --chat; "" for none',
        empty=True,
    )
    http_key_file: str = option("", "file with the API key of the HTTP API, chmod 600")
    origins: tuple[str, ...] = option(
        (), "web pages that may ask it, beside this machine's own, or *; may be repeated"
    )
    adapter: str | None = option(None, "the server's adapter that answers; without it the model's")
    system: str | None = option(None, "system message in front of the conversation", empty=True)
    raw: bool = option(False, "send the prompt as it is, without the chat template")
    chat_template: str = option(
        "", "chat template: draft for the draft's own, or a file; without it the target's"
    )
    enable_thinking: bool | None = option(
        None, "think before the answer, or do not, if the template can", also=("--thinking",)
    )
    stop: tuple[str, ...] = option((), "end the answer before this text; may be repeated")
    max_tokens: int = option(256, "longest answer, tokens", minimum=1)
    temperature: float = option(
        0.0, "0 is greedy; above it tokens are sampled", minimum=0, maximum=100
    )
    timeout_s: float = option(0.0, "seconds that an answer may take; 0: any", minimum=0)
    top_k: int = option(0, "sample among the k likeliest tokens; 0 = all", minimum=0)
    top_p: float = option(1.0, "sample among the likeliest tokens of this total probability")
    min_p: float = option(0.0, "drop tokens below this share of the likeliest one's probability")
    seed: int = option(0, "same seed, same prompt, same text", minimum=0, maximum=U64_MAX)
    frequency_penalty: float = option(
        0.0, "less for each time that a token was said before", minimum=-2, maximum=2
    )
    presence_penalty: float = option(
        0.0, "less for tokens that were said before", minimum=-2, maximum=2
    )
    repetition_penalty: float = option(
        1.0, "divides logits of tokens that the prompt or the answer has", minimum=0.01, maximum=100
    )
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    constraint: Constraint | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    spelled: Sequence[str] = ()
    max_budget: int = option(32, "nodes of a draft tree; 0 is plain decoding", minimum=0)
    max_n_beams: int = option(
        6, "nodes expanded in one pass of the draft model", minimum=1, maximum=255
    )
    max_beam_len: int = option(6, "passes of the draft model per tree", minimum=1, maximum=255)
    max_branch_width: int = option(6, "children considered per node", minimum=1, maximum=255)
    proactive: str = option(
        "multi",
        "drafting while a tree is in flight: below its best leaf, or below all likely outcomes",
        choices=("off", "single", "multi"),
    )
    offers: bool = option(True, "send drafts unasked while the server decodes plainly, if it likes")
    coupling: bool = option(True, "draft with the server's noise: more is accepted above T = 0")
    earlier_tokens: int = option(
        2**18, "tokens of earlier texts kept in memory, to look words up in; 0: none", minimum=0
    )
    reconnect_s: float = option(60.0, "seconds to find a lost server again; 0: none", minimum=0)
    resume_file: str = option("", "keep the answer here till its end; without --prompt: go on")
    stats: bool = option(True, "statistics at the end")

    def __post_init__(self) -> None:
        # one text is a list of one, so that a caller need not know that there may be several
        given = () if self.stop is None else self.stop
        is_one = isinstance(given, str) or not isinstance(given, Iterable)
        stop = (given,) if is_one else tuple(given)
        object.__setattr__(self, "stop", stop)
        super().__post_init__()
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ConfigError(f"--stop is {text!r}; give a text of one character or more")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; it lies between 0 and 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"--min-p is {self.min_p}; it lies between 0 and 1")
        self._check_told_in_python()
        if self.adapter is not None and not ADAPTER_NAME.fullmatch(self.adapter):
            raise ConfigError(
                f"--adapter is {self.adapter!r}; a name has 1 to 64 letters, digits, . _ @ or -"
            )
        if self.max_budget > 255:
            raise ConfigError(f"--max-budget is {self.max_budget}; a tree has at most 255 nodes")
        if self.seed >= 1 << 63:
            raise ConfigError(f"--seed is {self.seed}; it must be below 2^63")
        self._check_together()
        if self.serve or self.chat:
            self._check_http()
        if self.server != type(self).server:  # a default need not be one
            parse_address(self.server)

    def _check_together(self) -> None:
        wants_template = self.chat_template or self.enable_thinking is not None
        if self.raw and (self.chat or self.system or wants_template):
            raise ConfigError(
                "--raw sends one prompt without the chat template; it does not go with --chat, "
                "--system, --chat-template or --enable-thinking"
            )
        if self.chat and self.prompt is not None:
            raise ConfigError("--prompt asks one question; it does not go with --chat")
        if self.resume_file and self.chat:
            raise ConfigError("--resume-file keeps one answer; it does not go with --chat")
        if bool(self.user) != bool(self.token_file):
            raise ConfigError("--user and --token-file belong together; give both or none")
        if self.serve and (self.chat or self.prompt is not None or self.resume_file):
            raise ConfigError(
                "--serve answers others; it does not go with --prompt, --chat or --resume-file "
                "(--chat answers at --http as well)"
            )

    def _check_http(self) -> None:
        if not self.http:
            if self.serve:
                raise ConfigError("--serve needs an address; give it with --http")
            return
        host, _ = parse_address(self.http, "--http", least_port=0)
        if not self.http_key_file and not is_loopback(host):
            raise ConfigError(
                f"--http {self.http} can be reached by others, who must then give an API key: "
                "write one into a file, and name it with --http-key-file FILE"
            )

    def _check_told_in_python(self) -> None:
        _check_bias(self.logit_bias)
        if not isinstance(self.constraint, Constraint | None):
            raise ConfigError(f"constraint= is {self.constraint!r}; expected a Constraint, or None")
        if self.logprobs is None:
            return
        if type(self.logprobs) is not int or not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ConfigError(
                f"logprobs= is {self.logprobs!r}; give None, 0 for the tokens' own, or up to "
                f"{MOST_LOGPROBS} for as many likeliest ones besides"
            )
        if self.resume_file:
            raise ConfigError("a resume file keeps no log-probabilities; leave logprobs= out")


def _check_bias(bias: Any) -> None:
    """Raises ConfigError where it is not a number for each of some token ids."""
    if not isinstance(bias, Mapping):
        raise ConfigError(f"logit_bias= is {bias!r:.40}; give a number for each token id")
    if len(bias) > MOST_BIASES:
        raise ConfigError(f"logit_bias= has {len(bias)} tokens; at most {MOST_BIASES} are allowed")
    for token, value in bias.items():
        if type(token) is not int or token < 0:
            raise ConfigError(f"logit_bias= has the token {token!r:.40}; expected an id")
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not -MOST_BIAS <= value <= MOST_BIAS:
            raise ConfigError(
                f"logit_bias= has {value!r:.40} for token {token}; expected a number from "
                f"-{MOST_BIAS} to {MOST_BIAS}"
            )


def parse_address(address: str, name: str = "--server", least_port: int = 1) -> tuple[str, int]:
    """host:port (an IPv6 host in brackets) as its two parts; ConfigError says what is wrong."""
    scheme, is_url, rest = address.partition("://")
    if is_url:
        raise ConfigError(
            f"{name} is {address!r}; leave {scheme}:// out: expected host:port, such as "
            f"{rest.partition('/')[0] or '127.0.0.1:8400'}"
        )
    host, _, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_port = port.isdecimal() and len(port) <= 5 and least_port <= int(port) < 65536
    if not is_host(host) or not is_port:
        raise ConfigError(f"{name} is {address!r}; expected host:port, such as 127.0.0.1:8400")
    return host, int(port)


def version() -> str:
    """Of the package that is installed here."""
    from importlib import metadata  # not where nobody asks: it takes long to import

    try:
        return metadata.version("specedge")
    except metadata.PackageNotFoundError:
        return "of a folder that is not installed"


def prepare_threads(config: Options, env: MutableMapping[str, str]) -> None:
    """Tell OpenMP how to behave; call it before torch is imported.

    Its idle threads spin by default: two processes on one machine then slow each other down by a
    factor of ten or more, for nothing gained. Without any spinning they fall asleep between two
    products, and waking them takes what they save. Nor does OpenMP know of a cgroup's share of the
    CPUs, beyond which threads only take the time from each other; one CPU is left to the event
    loop, which works while the model does: a thread that waits its turn holds up all others.
    """
    env.setdefault("GOMP_SPINCOUNT", SPINS)
    env.setdefault("KMP_BLOCKTIME", "0")  # LLVM's OpenMP, as on macOS, counts in milliseconds
    if config.threads:
        env["OMP_NUM_THREADS"] = str(config.threads)
    else:
        cpus = min(cpu_quota() or math.inf, os.cpu_count() or 1)
        env.setdefault("OMP_NUM_THREADS", str(max(int(cpus) - 1, 1)))


def is_host(host: str) -> bool:
    """Whether it may be an address or a name, with nothing beside it."""
    if ":" not in host:
        return bool(host) and host.isprintable() and not set(host) & set(" []/,@")
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on; a name counts as others'."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
