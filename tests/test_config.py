"""Options: where they come from, in which order, and what a wrong one says."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from runtime.arguments import RENAMED, parse
from runtime.config import (
    SPINS,
    ConfigError,
    EdgeConfig,
    ServerConfig,
    parse_address,
    prepare_threads,
)
from runtime.constraint import Constraint
from runtime.edge.net.asking import opening
from runtime.edge.prompts import read_template
from runtime.option_files import read_token
from runtime.options import flag
from runtime.sampling import Sampling


def edge(*argv: str, env: dict[str, str] | None = None) -> EdgeConfig:
    return parse(EdgeConfig, argv, env or {}, "edge")


def test_flag_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('max_budget = 5\nmax_beam_len = 6\ntop_k = 7\ncoupling = false\nprompt = "é"\n')
    env = {"SPECEDGE_MAX_BEAM_LEN": "60", "SPECEDGE_TOP_K": "70", "SPECEDGE_CONFIG": str(file)}
    config = edge("--top-k", "700", env=env)
    assert (config.max_budget, config.max_beam_len, config.top_k) == (5, 60, 700)
    assert config.max_branch_width == EdgeConfig.max_branch_width
    assert config.coupling is False
    assert config.prompt == "é"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_option_that_has_another_name_now(old: str, new: str, tmp_path: Path) -> None:
    names = [(old, new)]
    names += [(f"--{o.replace('_', '-')}", f"--{n.replace('_', '-')}") for o, n in names]
    names += [(f"SPECEDGE_{old.upper()}", f"SPECEDGE_{new.upper()}")]
    (tmp_path / "server.toml").write_text(f'{old} = "1"\n')
    asked: list[tuple[list[str], dict[str, str]]] = [
        (["--config", str(tmp_path / "server.toml")], {}),
        ([names[1][0], "1"], {}),
        ([], {names[2][0]: "1"}),
    ]
    for (was, now), (argv, env) in zip(names, asked, strict=True):
        with pytest.raises(ConfigError, match=f"{was} is called {now} now"):
            parse(ServerConfig, argv, env, "server")
    value = "float32" if new == "weights" else "7"
    config = parse(ServerConfig, [], {names[2][0]: "1", names[2][1]: value}, "server")
    assert str(getattr(config, new)) == value


def test_empty_is_off_where_that_is_not_the_default_and_in_the_environment() -> None:
    assert edge("--chat", "--http", "").http == ""
    assert edge("--system", "").system == ""
    assert edge(env={"SPECEDGE_TLS": "", "SPECEDGE_CONFIG": ""}) == edge()


@pytest.mark.parametrize("cls", [EdgeConfig, ServerConfig])
def test_no_text_is_taken_where_it_is_empty_but_those_it_means_something_for(
    cls: type[EdgeConfig],
) -> None:
    """Wherever it comes from, unless empty is what it is by itself."""
    means_something = {"http", "system", "prompt"}
    for item in fields(cls):
        if item.name in means_something or "str" not in str(item.type) or not item.metadata:
            continue
        name = flag(item.name)
        for argv in ([f"{name}="], [name, ""], ["--threads", "1", name, ""]):
            with pytest.raises(ConfigError, match=f"^{name} is empty; say what it is, or leave"):
                parse(cls, argv, {}, "program")
        if item.default and not item.metadata["choices"]:
            with pytest.raises(ConfigError, match=f"^{name} is empty"):
                cls(**{item.name: ""})
            with pytest.raises(ConfigError, match=f"^{name} is empty"):
                parse(cls, [], {f"SPECEDGE_{item.name.upper()}": ""}, "program")
    with pytest.raises(ConfigError, match=r"^an argument is empty"):
        parse(cls, [""], {}, "program")


def test_an_old_name_of_the_other_process_is_none_of_ours() -> None:
    assert edge(env={"SPECEDGE_MAX_SESSIONS": "3"}) == edge()


@pytest.mark.parametrize(
    ("options", "both"),
    [
        ({"port": 8402}, "--port and --http are both port 8402 of 127.0.0.1"),
        ({"openai": "127.0.0.1:8400"}, "--port and --openai are both"),
        ({"openai": "127.0.0.1:8402"}, "--http and --openai are both"),
        ({"port": 0, "http": "127.0.0.1:0", "openai": "127.0.0.1:0"}, ""),
        ({"port": 8402, "http": ""}, ""),
        ({"port": 8402, "host": "::1"}, ""),
    ],
)
def test_each_port_of_a_server_is_its_own(options: dict[str, Any], both: str) -> None:
    with pytest.raises(ConfigError, match=both) if both else nullcontext():
        ServerConfig(**options)


def test_a_context_holds_a_prompt_and_an_answer() -> None:
    with pytest.raises(ConfigError, match="a prompt and its answer have 2 tokens at least"):
        ServerConfig(max_context=1)
    assert ServerConfig(max_context=2).max_context == 2


def test_switches() -> None:
    assert edge("--no-coupling").coupling is False
    assert edge("--coupling", env={"SPECEDGE_COUPLING": "no"}).coupling is True
    assert edge(env={"SPECEDGE_CHAT": "1"}).chat is True


@pytest.mark.parametrize(
    ("argv", "env", "says"),
    [
        (["--max-bugdet", "3"], {}, "unknown option --max-bugdet; did you mean --max-budget?"),
        (["--zzz"], {}, "unknown option --zzz; see --help"),
        (["--max-budget=300"], {}, "--max-budget is 300; a tree has at most 255 nodes"),
        (["--max-budget", "-1"], {}, "--max-budget is -1; the least it takes is 0"),
        (["--max-tokens", "many"], {}, "argument --max-tokens: invalid int value: 'many'"),
        (["--temperature", "nan"], {}, "--temperature is nan; the least it takes is 0"),
        (["--top-p", "-0.1"], {}, "--top-p is -0.1; it lies between 0 and 1"),
        (["--server", "localhost"], {}, "expected host:port"),
        (["--seed", str(1 << 63)], {}, "it must be below 2^63"),
        ([], {"SPECEDGE_TOP_K": "x"}, "SPECEDGE_TOP_K is 'x'; expected int"),
        ([], {"SPECEDGE_CHAT": "maybe"}, "SPECEDGE_CHAT is 'maybe'; expected true or false"),
        ([], {"SPECEDGE_WEIGHTS": "int4"}, "--weights is 'int4'; it takes one of stored, float32"),
        (["--tls", ""], {}, "--tls is empty; say what it is, or leave it out"),
        (["--config="], {}, "--config is empty"),
        (["--config", "nowhere.toml"], {}, "cannot read --config nowhere.toml: No such file"),
    ],
)
def test_a_wrong_option_says_what_is_wrong(argv: list[str], env: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        edge(*argv, env=env)
    assert says in str(error.value)


NUMBERS = [
    (cls, item)
    for cls in (EdgeConfig, ServerConfig)
    for item in fields(cls)
    if type(item.default) in (int, float)
]


@pytest.mark.parametrize(("cls", "item"), NUMBERS, ids=lambda value: getattr(value, "name", None))
def test_every_number_has_limits(cls: type[EdgeConfig], item: "Field[Any]") -> None:
    """Neither infinite nor more than the protocol's structures hold, nor what is no number."""
    for text in ("nan", "inf", "-inf", "1e999", str(2**64), "-3", "9" * 5000, "x", ""):
        with pytest.raises(ConfigError, match=flag(item.name)):
            parse(cls, [f"{flag(item.name)}={text}"], {}, "program")
    for value in ("3", True, float("nan"), 2**200):
        with pytest.raises(ConfigError, match=flag(item.name)):
            cls(**{item.name: value})


def test_all_of_a_request_that_is_taken_fits_into_its_message() -> None:
    most = edge("--top-k", str(2**32 - 1), "--max-tokens", str(2**32 - 1), "--seed", str(2**63 - 1))
    sampling = Sampling(most.max_tokens, top_k=most.top_k, seed=most.seed)
    assert opening(sampling, 1, 1, most.max_budget).encode(300)


TEXTS = [
    (cls, item)
    for cls in (EdgeConfig, ServerConfig)
    for item in fields(cls)
    if item.type in ("str", "str | None", str, str | None)
]


@pytest.mark.parametrize(("cls", "item"), TEXTS, ids=lambda value: getattr(value, "name", None))
def test_bytes_that_are_no_text_are_a_sentence(cls: type[EdgeConfig], item: "Field[Any]") -> None:
    for argv, env in (
        ([f"{flag(item.name)}=caf\udce9"], {}),
        ([], {f"SPECEDGE_{item.name.upper()}": "caf\udce9"}),
    ):
        with pytest.raises(ConfigError) as error:
            parse(cls, argv, env, "program")
        str(error.value).encode()


def test_links_to_services_are_no_options() -> None:
    """What Kubernetes sets in every pod beside a service of the name specedge."""
    env = {
        "SPECEDGE_PORT": "tcp://10.0.0.1:8400",
        "SPECEDGE_PORT_8400_TCP": "tcp://10.0.0.1:8400",
        "SPECEDGE_SERVICE_HOST": "10.0.0.1",
        "SPECEDGE_SERVICE_PORT": "8400",
    }
    assert parse(ServerConfig, ["--port", "8401"], env, "server").port == 8401
    assert parse(ServerConfig, [], env, "server").port == 8400
    with pytest.raises(ConfigError, match="SPECEDGE_PORT is 'eighty'; expected int"):
        parse(ServerConfig, [], {"SPECEDGE_PORT": "eighty"}, "server")


def test_what_is_overridden_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('top_k = "many"\nmax_tokens = "many"\n')
    env = {"SPECEDGE_TOP_K": "x", "SPECEDGE_MAX_TOKENS": "7"}
    config = edge("--config", str(file), "--top-k", "5", env=env)
    assert (config.top_k, config.max_tokens) == (5, 7)
    with pytest.raises(ConfigError, match=r"max_tokens in .* is 'many'; expected int"):
        edge("--config", str(file), "--top-k", "5")


def test_a_byte_order_mark_is_no_part_of_what_a_person_wrote(tmp_path: Path) -> None:
    """Some editors, most on Windows, put one before every text."""
    files = {"edge.toml": "top_k = 7\n", "token": "a" * 32, "own.jinja": "{{ messages }}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        (tmp_path / name).chmod(0o600)
    assert edge("--config", str(tmp_path / "edge.toml")).top_k == 7
    assert read_token(tmp_path / "token") == files["token"]
    assert read_template(str(tmp_path / "own.jinja")) == files["own.jinja"]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no such device here")
def test_a_file_of_options_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config /dev/zero is longer than any options"):
        edge("--config", "/dev/zero")
    assert edge("--config", "/dev/null") == edge()
    file = tmp_path / "long.toml"
    file.write_text("#" * 2**20 + "\ntop_k = 7\n")
    with pytest.raises(ConfigError, match=r"long\.toml is longer than any options"):
        edge("--config", str(file))


def test_stop_strings_may_be_several(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('stop = ["a", "\\n\\n"]\n')
    assert edge().stop == ()
    assert edge("--stop", "a", "--stop=b c").stop == ("a", "b c")
    assert edge(env={"SPECEDGE_STOP": "a,b"}).stop == ("a,b",)
    assert edge("--config", str(file)).stop == ("a", "\n\n")
    file.write_text('stop = "only"\n')
    assert edge("--config", str(file)).stop == ("only",)
    assert EdgeConfig(stop=["x"]).stop == EdgeConfig(stop="x").stop == ("x",)
    for wrong in ("", ["a", ""], [7]):
        with pytest.raises(ConfigError, match=r"--stop is .*give a text"):
            EdgeConfig(stop=wrong)
    with pytest.raises(ConfigError, match="--stop is not valid UTF-8"):
        edge("--stop", "\udce9")
    file.write_text('prompt = ["a"]\n')
    with pytest.raises(ConfigError, match=r"prompt in .* is \['a'\]; expected str"):
        edge("--config", str(file))
    for wrong in ('[["a"]]', '["a", {b = 1}]', '{b = "a"}'):
        file.write_text(f"stop = {wrong}\n")
        with pytest.raises(ConfigError, match=r"stop in .* is [\[{].*[\]}]; expected str"):
            edge("--config", str(file))


@pytest.mark.parametrize(
    ("cls", "name"), [(EdgeConfig, "origins"), (ServerConfig, "origins"), (ServerConfig, "adapter")]
)
def test_one_of_what_may_be_several_is_a_list_of_one(
    cls: type[EdgeConfig], name: str, tmp_path: Path
) -> None:
    """As a variable of the environment always is, which has no lists."""
    file, one = tmp_path / "options.toml", "one=https://chat.example"
    file.write_text(f'{name} = "{one}"\n')
    told = (
        parse(cls, [], {f"SPECEDGE_{name.upper()}": one}, "program"),
        parse(cls, ["--config", str(file)], {}, "program"),
        parse(cls, [flag(name), one], {}, "program"),
        cls(**{name: one}),
    )
    for config in told:
        assert tuple(getattr(config, name)) == (one,)
    assert getattr(parse(cls, [], {f"SPECEDGE_{name.upper()}": ""}, "program"), name) == ()


def test_thinking_is_left_alone_unless_it_is_asked_for() -> None:
    assert edge().enable_thinking is None
    for on, off in (("--enable-thinking", "--no-enable-thinking"), ("--thinking", "--no-thinking")):
        assert edge(on).enable_thinking is True
        assert edge(off).enable_thinking is False
    assert edge(env={"SPECEDGE_ENABLE_THINKING": "no"}).enable_thinking is False


@pytest.mark.parametrize("options", [["--chat"], ["--system=x"], ["--no-thinking"]])
def test_raw_has_no_template(options: list[str]) -> None:
    with pytest.raises(ConfigError, match="--raw sends one prompt without the chat template"):
        edge("--raw", *options)


def test_one_question_is_no_conversation() -> None:
    with pytest.raises(ConfigError, match="--prompt asks one question; it does not go with --chat"):
        edge("--chat", "--prompt", "hi")


def test_a_tokenizer_is_named_beside_a_draft_or_alone() -> None:
    assert edge("--tokenizer", "smollm2").tokenizer == "smollm2"
    assert edge("--draft", "none", "--tokenizer", "smollm2").tokenizer == "smollm2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", 3),  # open() would take it for a file that is open already, and close it
        ("token_file", 0),
        ("system", 3),
        ("draft", ["a"]),
        ("raw", "yes"),
        ("enable_thinking", "no"),
        ("max_tokens", None),
        ("stop", 5),
        ("stop", [b"a"]),
    ],
)
def test_a_caller_is_told_of_a_value_of_another_type(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} is .*; (expected|give) "):
        EdgeConfig(**{name: value})


def test_a_wrong_file(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text("max_bugdet = 3")
    with pytest.raises(ConfigError, match=r"unknown option max_bugdet; did you mean max_budget\?"):
        edge("--config", str(file))
    file.write_text("max_budget = = 3")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        edge("--config", str(file))


def test_the_largest_tree_must_fit_into_a_step() -> None:
    with pytest.raises(ConfigError, match="--max-step-nodes"):
        ServerConfig(max_nodes=64, max_step_nodes=64)


def test_addresses() -> None:
    assert parse_address("[::1]:80") == ("::1", 80)
    for wrong in (
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "host:http",
        f"host:{'0' * 5000}80",
    ):
        with pytest.raises(ConfigError):
            parse_address(wrong)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://host:80", "host:80"),
        ("https://[::1]:8400/v1", "[::1]:8400"),
        ("tcp://", "127.0.0.1:8400"),
    ],
)
def test_a_url_is_no_address(url: str, meant: str) -> None:
    scheme = url.partition("://")[0]
    with pytest.raises(ConfigError) as told:
        EdgeConfig(server=url)
    assert f"leave {scheme}:// out: expected host:port, such as {meant}" in str(told.value)


def test_threads_are_set_before_torch_and_spin_for_a_moment_only() -> None:
    env = {"OMP_NUM_THREADS": "9"}
    prepare_threads(EdgeConfig(threads=2), env)
    assert env == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": SPINS, "KMP_BLOCKTIME": "0"}


@pytest.mark.parametrize("program", ["runtime.server", "runtime.edge"])
def test_help_answers_without_torch(program: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{program}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{program}', run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'asyncio', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max-nodes" in done.stdout or "--max-budget" in done.stdout


def test_the_word_auto_stands_for_0_where_0_means_that(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('kv_tokens = "auto"')
    for argv, env in (
        (["--kv-tokens", "auto"], {}),
        ([], {"SPECEDGE_KV_TOKENS": "auto"}),
        (["--config", str(file)], {}),
        ([], {}),
    ):
        assert parse(ServerConfig, argv, env, "server").kv_tokens == 0
    with pytest.raises(ConfigError, match="int"):
        parse(ServerConfig, ["--max-nodes", "auto"], {}, "server")
    with pytest.raises(ConfigError, match="int"):
        parse(ServerConfig, ["--kv-tokens", "many"], {}, "server")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frequency_penalty": 2.1}, "the most it takes is 2"),
        ({"presence_penalty": -2.1}, "the least it takes is -2"),
        ({"repetition_penalty": 0.0}, "the least it takes is 0.01"),
        ({"logit_bias": [1]}, "give a number for each token id"),
        ({"logit_bias": {"1": 2.0}}, "has the token '1'; expected an id"),
        ({"logit_bias": {-1: 2.0}}, "has the token -1; expected an id"),
        ({"logit_bias": {1: "2"}}, "has '2' for token 1"),
        ({"logit_bias": {1: True}}, "has True for token 1"),
        ({"logit_bias": {1: 100.5}}, "from -100 to 100"),
        ({"logit_bias": {1: float("nan")}}, "from -100 to 100"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "at most 1024 are allowed"),
        ({"logprobs": -1}, "give None, 0"),
        ({"logprobs": 21}, "give None, 0"),
        ({"logprobs": True}, "give None, 0"),
        ({"logprobs": 1, "resume_file": "x"}, "keeps no log-probabilities"),
        ({"constraint": "[a-z]"}, "expected a Constraint"),
    ],
)
def test_what_only_python_can_tell_is_checked_too(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        EdgeConfig(**options)


def test_a_constraint_has_a_kind_and_a_text() -> None:
    assert EdgeConfig(constraint=Constraint("regex", "x" * 61_431)).constraint
    with pytest.raises(ValueError, match="cannot be of the kind 'sql'; there are json_schema"):
        Constraint("sql", "x")
    for text in ("", "x" * 61_432, "é" * 30_716):
        with pytest.raises(ValueError, match="bytes; there are 1 to 61431"):
            Constraint("lark", text)
    for text in (None, 7, b"x", "\ud800"):
        with pytest.raises(ValueError, match="expected text"):
            Constraint("lark", text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"adapter": ("sql",)}, "expected NAME=PATH"),
        ({"adapter": ("=sql",)}, "expected NAME=PATH"),
        ({"adapter": ("sql=",)}, "expected NAME=PATH"),
        ({"adapter": ("two words=sql",)}, "expected NAME=PATH"),
        ({"adapter": (f"{'x' * 65}=sql",)}, "expected NAME=PATH"),
        ({"adapter": ("sql=a", "sql=b")}, "two adapters one name"),
        ({"adapter": tuple(f"a{i}=x" for i in range(129))}, "129 adapters are given; at most 128"),
        ({"adapter": ("sql=a",), "redirect": "a:1"}, "give --adapter to the replicas"),
        ({"adapter": ("sql=a",), "user_adapter": ("bob=sql",)}, "needs --users FILE"),
        ({"user_adapter": ("bob=sql",), "users": "u"}, "name one of --adapter"),
        ({"user_adapter": ("bob",), "users": "u"}, "expected USER=NAME"),
    ],
)
def test_adapters_that_cannot_be_given(options: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ServerConfig(**options)


def test_adapters_have_names_and_paths() -> None:
    given = ["--adapter", "sql=a=b", "--adapter", "tone=c.gguf", "--user-adapter", "bob=tone"]
    config = parse(ServerConfig, [*given, "--users", "u"], {}, "server")
    assert config.adapters == {"sql": Path("a=b"), "tone": Path("c.gguf")}
    assert config.adapters_of_users == {"bob": "tone"}
    assert EdgeConfig(adapter="sql").adapter == "sql"
    for wrong in ("", "two words", "x" * 65):
        with pytest.raises(ConfigError, match="a name has 1 to 64 letters"):
            EdgeConfig(adapter=wrong)
