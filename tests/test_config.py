"""Options: where they come from, in which order, and what a wrong one says."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.config import (
    ConfigError,
    EdgeConfig,
    ServerConfig,
    parse,
    parse_address,
    prepare_threads,
)


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
        (["--top-p", "0"], {}, "--top-p is 0.0; it lies above 0 and at most at 1"),
        (["--server", "localhost"], {}, "expected host:port"),
        (["--seed", str(1 << 63)], {}, "it must be below 2^63"),
        ([], {"SPECEDGE_TOP_K": "x"}, "SPECEDGE_TOP_K is 'x'; expected int"),
        ([], {"SPECEDGE_CHAT": "maybe"}, "SPECEDGE_CHAT is 'maybe'; expected true or false"),
        ([], {"SPECEDGE_DTYPE": "int4"}, "--dtype is 'int4'; it takes one of float32, bfloat16"),
        (["--config", "nowhere.toml"], {}, "cannot read --config nowhere.toml: No such file"),
    ],
)
def test_a_wrong_option_says_what_is_wrong(argv: list[str], env: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        edge(*argv, env=env)
    assert says in str(error.value)


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
    for wrong in ("host", "host:", ":80", "host:0", "host:65536", "host:http"):
        with pytest.raises(ConfigError):
            parse_address(wrong)


def test_threads_are_set_before_torch_and_do_not_spin() -> None:
    env = {"OMP_NUM_THREADS": "9"}
    prepare_threads(EdgeConfig(threads=2), env)
    assert env == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"}


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
