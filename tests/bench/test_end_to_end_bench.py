"""The evaluation: its numbers against hand-made records, its modes against each other's texts."""

import argparse
import dataclasses
import io
import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from bench.end_to_end import FIGURES, PAPER
from runtime.bench.__main__ import main, parse_options
from runtime.bench.command import make_setup, read_prices, search_shapes
from runtime.bench.evaluation import Case, Row, different_texts, find, make_cases, make_rows
from runtime.bench.figures import Bound, Prices, bound, figures, inter_token_s, percentile
from runtime.bench.link import Conditions
from runtime.bench.modes import MODES, REPLAYED, SERVER_ONLY
from runtime.bench.objective import Carried, carried
from runtime.bench.prompts import SHIPPED, TASKS, described, read_questions
from runtime.bench.records import Answer, Run, Step, read_trace
from runtime.bench.report import capacity, layer_split_ms, print_report, reached, to_json
from runtime.bench.results import Evaluation, add, begin, line_of, read
from runtime.bench.runs import Setup, Shape, stretch_to_hold
from runtime.bench.workers import Cores, Worker, ask_all

PRICES = Prices(server=0.5, edge=0.25)
CORES = Cores(frozenset({0}), frozenset({0}))
SETUP = Setup(questions=("a", "b"), cores=CORES)
EVALUATION = Evaluation(SETUP, Shape(), PRICES, None, {"system": "a machine"})


def an_answer(prompt: int, arrivals: list[tuple[float, int]], asked_s: float = 0.0) -> Answer:
    ids = tuple(range(arrivals[-1][1]))
    return Answer(prompt, ids, asked_s, tuple(arrivals), verifications=len(arrivals))


RUN = Run(
    mode="specedge",
    clients=2,
    edges=2,
    start_s=10.0,
    end_s=20.0,
    answers=(
        an_answer(0, [(11.0, 1), (13.0, 5), (14.0, 6)], asked_s=10.0),
        an_answer(1, [(12.0, 1), (15.0, 4), (25.0, 9)], asked_s=11.5),
    ),
    steps=(
        Step(9.0, 11.0, chunk_rows=30, nodes={"e/1": 0}),
        Step(11.0, 13.0, nodes={"e/1": 7}),
        Step(14.0, 15.0, nodes={"e/2": 7}),
        Step(19.0, 24.0, chunk_rows=5),
    ),
)


def test_figures_of_a_run_by_hand() -> None:
    f = figures(RUN, PRICES)
    assert f.tokens_per_s == pytest.approx((6 + 4) / 10), "what came later does not count"
    assert f.tokens_per_verification == pytest.approx((5 + 8) / (2 + 2))
    # token by token: 0.5 x 4, 1.0, 1.0 x 3, 2.0 x 5
    assert f.inter_token_ms == pytest.approx(1e3 * (2 + 1 + 3 + 10) / 13)
    assert f.inter_token_p50_ms == pytest.approx(1000)
    assert f.inter_token_p99_ms == pytest.approx(2000)
    assert f.first_token_ms == pytest.approx(1e3 * (1.0 + 0.5) / 2), "prompts are inside the clock"
    assert f.ktokens_per_dollar == pytest.approx(10 / 1000 / ((0.5 + 2 * 0.25) * 10))
    assert f.verifying == pytest.approx((1 + 2 + 1 + 1) / 10), "steps are cut at the window"
    assert f.drafted == pytest.approx(2 / 3)
    assert f.nodes_per_draft == pytest.approx(7)
    assert f.verify_ms == pytest.approx(1e3 * (2 + 1) / 2), "V is of steps that read no prompt"


def test_drafting_is_counted_where_it_happens() -> None:
    passes = ((11.0, 11.5), (12.0, 12.5), (13.0, 13.5))
    on_edges = dataclasses.replace(RUN.answers[0], passes=passes)
    run = dataclasses.replace(RUN, answers=(on_edges,))
    assert figures(run, PRICES).draft_ms == pytest.approx(1e3 * 1.5 / 3), "per round"
    on_server = dataclasses.replace(RUN, drafting=passes)
    assert figures(on_server, PRICES).draft_ms == pytest.approx(1e3 * 1.5 / 4), "per step"


def test_a_run_of_nothing_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        figures(dataclasses.replace(RUN, answers=()), PRICES)
    with pytest.raises(ValueError, match="nothing was measured"):
        figures(dataclasses.replace(RUN, end_s=10.0), PRICES)


def test_tokens_that_arrive_together_share_the_wait() -> None:
    assert inter_token_s(an_answer(0, [(1.0, 2), (4.0, 5)])) == pytest.approx([1.0] * 3)
    assert inter_token_s(an_answer(0, [(1.0, 3)])) == []


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 5), (0.99, 10), (0.1, 1), (0.11, 2), (1.0, 10)]
)
def test_percentiles(share: float, expected: float) -> None:
    values = [float(i) for i in range(1, 11)]
    assert percentile(values, share) == expected
    assert percentile([], share) == 0.0


def test_the_bound_of_the_paper() -> None:
    """Two servers at full tilt, one of which drafts for as long as it verifies."""
    made = Bound(draft_ms=90.0, verify_ms=90.0, acceptance_gain=1.1, reached=2.2)
    assert made.bound == pytest.approx(2.2)
    assert made.share == pytest.approx(1.0)
    base, ours = figures(RUN, PRICES), figures(RUN, PRICES)
    base = dataclasses.replace(base, draft_ms=50.0, verify_ms=100.0, tokens_per_s=1.0)
    ours = dataclasses.replace(ours, tokens_per_s=1.2, verify_ms=7.0, draft_ms=7.0)
    assert bound(base, ours) == Bound(50.0, 100.0, 1.0, 1.2)
    assert bound(base, ours).share == pytest.approx(0.8)


def test_answers_survive_the_way_through_json() -> None:
    answer = dataclasses.replace(RUN.answers[0], passes=((1.0, 2.0),), wire_bytes=7, client=1)
    assert Answer.read(json.loads(json.dumps(dataclasses.asdict(answer)))) == answer


def test_any_text_but_the_plain_one_is_an_error() -> None:
    wrong = dataclasses.replace(RUN.answers[1], ids=(9,) * 9)
    assert different_texts(RUN, RUN) == 0
    assert different_texts(dataclasses.replace(RUN, answers=(RUN.answers[0], wrong)), RUN) == 1
    assert different_texts(dataclasses.replace(RUN, answers=RUN.answers[:1]), RUN) == 1
    with pytest.raises(ValueError, match="must include plain"):
        make_rows({Case("specedge", SETUP, 2): [RUN]}, PRICES)


def a_row(mode: str, rates: list[float], rtt_s: float = 0.0, verify_ms: float = 10.0) -> Row:
    setup = dataclasses.replace(
        SETUP, conditions=dataclasses.replace(SETUP.conditions, rtt_s=rtt_s)
    )
    f = figures(RUN, PRICES)
    each = [dataclasses.replace(f, tokens_per_s=rate, verify_ms=verify_ms) for rate in rates]
    return Row(Case(mode, setup, 2), tuple(each), different=0)


def test_ratios_are_taken_within_a_repetition() -> None:
    """A machine that was twice as fast in the second repetition changes no ratio."""
    ours, base = a_row("specedge", [20.0, 40.0, 60.0]), a_row(SERVER_ONLY, [10.0, 20.0, 20.0])
    assert ours.ratio(base, "tokens_per_s") == (2.0, 2.0, 3.0)
    assert ours.spread("tokens_per_s") == (40.0, 20.0, 60.0)


def test_the_layer_split_is_simulated_from_the_plain_step() -> None:
    rows = [a_row("plain", [1.0], verify_ms=30.0), a_row("specedge", [1.0], rtt_s=0.015)]
    assert layer_split_ms(rows) == {15.0: 45.0}
    report = to_json(rows, EVALUATION)
    assert report["layer_split_simulated_ms"] == {15.0: 45.0}
    assert reached(rows) is None
    assert find(rows, SERVER_ONLY) is None


def test_clients_within_an_objective() -> None:
    def a_case(mode: str, clients: int, latencies_ms: list[tuple[float, float]]) -> Row:
        each = [
            dataclasses.replace(figures(RUN, PRICES), inter_token_ms=mean, inter_token_p99_ms=p99)
            for mean, p99 in latencies_ms
        ]
        return Row(Case(mode, SETUP, clients), tuple(each), different=0)

    rows = [
        a_case("plain", 2, [(90.0, 101.0)]),
        a_case(REPLAYED, 2, [(60.0, 80.0)]),
        # the median of the repetitions counts, and the objective itself is within it
        a_case(REPLAYED, 8, [(99.0, 150.0), (100.0, 160.0), (300.0, 400.0)]),
        a_case(REPLAYED, 4, [(100.5, 100.0)]),
        dataclasses.replace(a_case(REPLAYED, 16, [(10.0, 10.0)]), different=1),
        a_case(SERVER_ONLY, 1, [(101.0, 200.0)]),
    ]
    within = carried(rows, 100.0)
    assert within == [
        Carried("plain", 0.0, (2,), by_mean=2, by_p99=0),
        Carried(REPLAYED, 0.0, (2, 4, 8), by_mean=8, by_p99=4),
        Carried(SERVER_ONLY, 0.0, (1,), by_mean=0, by_p99=0),
    ]
    assert "8 client(s) by the mean, 4 by the p99 (tried: 2, 4, 8)" in capacity(within[1], 100.0)
    far = a_row("specedge", [1.0], rtt_s=0.015)
    assert carried([far], 1e9) == [Carried("specedge", 15.0, (2,), 2, 2)]
    report = to_json(rows, dataclasses.replace(EVALUATION, objective_ms=100.0))
    assert report["clients_within_objective"][1]["by_p99"] == 4
    assert to_json(rows, EVALUATION)["clients_within_objective"] == []


def test_plots_of_all_kinds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from runtime.bench.plots import write_plots

    deep = dataclasses.replace(a_row("no-pipeline", [2.0], 0.01).case, depth=3)
    rows = [
        a_row("plain", [1.0, 1.5]),
        a_row(SERVER_ONLY, [1.0, 1.2]),
        *(a_row("specedge", [2.0, 2.5], rtt_s) for rtt_s in (0.0, 0.01)),
        dataclasses.replace(a_row("no-pipeline", [2.0, 2.1], 0.01), case=deep),
    ]
    written = write_plots(tmp_path / "plots", rows, RUN, "a machine, and its models")
    assert [path.name for path in written] == [
        "throughput.png",
        "rtt.png",
        "depth.png",
        "timeline.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_which_cases_an_evaluation_has() -> None:
    modes = ["plain", SERVER_ONLY, "specedge"]
    cases = make_cases(SETUP, modes, [0.0, 0.05], depths=[2, 4], replayed=[16])
    assert [(c.mode, c.clients, c.rtt_ms, c.depth) for c in cases] == [
        ("plain", 2, 0.0, None),
        (SERVER_ONLY, 1, 0.0, None),
        (SERVER_ONLY, 2, 0.0, None),
        ("specedge", 2, 0.0, None),
        ("specedge", 2, 50.0, None),
        *(("no-pipeline", 2, rtt, depth) for rtt in (0.0, 50.0) for depth in (2, 4)),
        (REPLAYED, 16, 0.0, None),
    ]
    assert [c.setup.shape.max_beam_len for c in cases[-5:-1]] == [2, 4, 2, 4]


def test_a_trace_becomes_steps(tmp_path: Path) -> None:
    lines = [
        {"start_s": 1.0, "end_s": 2.0, "rows": 9, "chunk_rows": 0, "requests": [["e", 3, 8, 2]]},
        {"start_s": 2.0, "end_s": 3.0, "rows": 0, "chunk_rows": 64, "requests": []},
    ]
    path = tmp_path / "trace"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with_tree, with_prompt = read_trace(path)
    assert with_tree == Step(1.0, 2.0, 0, {"e/3": 8})
    assert with_tree.verifies_only
    assert not with_prompt.verifies_only


def test_prompts_of_a_file_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    entries = [
        {"category": c, "turns": [f"{c} {i}"]} for c in ("stem", "math", "qa") for i in "0123"
    ]
    path.write_text("\n".join(map(json.dumps, entries)))
    questions = read_questions(path, per_task=2)
    assert [q.text for q in questions] == ["stem 0", "math 0", "qa 0", "qa 2"]
    assert {q.task for q in questions} == {"multi-turn", "qa"}
    assert [q.text for q in read_questions(path, 9, ["qa"])] == ["qa 0", "qa 1", "qa 2", "qa 3"]
    with pytest.raises(ValueError, match="its tasks are multi-turn, qa"):
        read_questions(path, 9, ["poetry"])
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(path, per_task=2)
    path.write_text('{"category": "qa"}')
    with pytest.raises(ValueError, match="line 1: expected category and turns"):
        read_questions(path, per_task=2)


def test_the_shipped_prompts_are_two_of_each_task() -> None:
    questions = read_questions(SHIPPED, per_task=2)
    assert Counter(question.task for question in questions) == dict.fromkeys(TASKS, 2)
    assert make_setup(parse_options([])).questions == tuple(q.text for q in questions)


@pytest.mark.parametrize(
    "line",
    [
        b'["qa", ["why?"]]', b'{"category": "qa", "turns": []}', b'{"turns": ["why?"]}',
        b'{"category": "qa", "turns": "why?"}', b'{"category": "qa", "turns": ["why?", 3]}',
        b'{"category": "qa", "turns": [""]}', b'{"category": "qa"', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_line_that_is_no_prompt_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    right = '{"category": "qa", "turns": ["one\u2028line"]}'
    path.write_bytes(f"\ufeff{right}\r\n\n".encode() + line)
    with pytest.raises(ValueError, match="line 3: expected category and turns"):
        described(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        described(path)


def test_a_file_of_prompts_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["runtime.bench", "prompts"])
    assert main() == 0
    assert "12 prompts: 2 multi-turn, 2 translation" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["runtime.bench", "prompts", str(tmp_path / "nowhere")])
    assert main() == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        *("--repeats 0", "--per-task 0", "--max-tokens 0", "--batch -1", "--edges 0", "--seed -1"),
        *("--rtt-ms 1 nan", "--verify-ms nan", "--draft-pass-ms -1", "--jitter-ms inf"),
        *("--depths 3 0", "--replayed 0", "--temperature -1", "--max-budget 256", "--json /x/y"),
        *("table --rtt-ms nan", "table --answers 0", "capacity --clients 2 0"),
        *("capacity --objective-ms nan", "ablations --seed -1"),
    ],
)
def test_a_number_that_cannot_be_is_told_before_anything_runs(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["runtime.bench", *wrong.split()])
    with pytest.raises(SystemExit) as told:
        main()
    assert told.value.code == 2
    name = next(word for word in wrong.split() if word.startswith("--"))
    assert f"argument {name}: " in capsys.readouterr().err.splitlines()[-1]


def test_quick_changes_nothing_that_is_given() -> None:
    def given(*argv: str) -> tuple[int, int]:
        options = parse_options(list(argv))
        return options.max_tokens, options.repeats

    assert given() == (64, 3)
    assert given("--quick") == (32, 2)
    assert given("--quick", "--max-tokens", "100", "--repeats", "5") == (100, 5)


def test_stated_times_grow_until_the_machine_holds_them() -> None:
    """A worker whose steps take 120 ms at most, and whose passes 10 ms, on one core for two."""

    class Slow:
        def ask(self, job: dict[str, Any]) -> Any:
            assert (job["clients"], job["draft_pass_s"], job["verify_step_s"]) == (2, 0, 0)
            requests = [["here", 0, 16, None], ["here", 1, 16, None]]
            step = {"start_s": 1.0, "end_s": 1.12, "chunk_rows": 0, "requests": requests}
            reading = {"start_s": 0.0, "end_s": 9.0, "chunk_rows": 99, "requests": []}
            times = {"start_s": 0.0, "end_s": 2.0, "drafting": [[0.0, 0.01]]}
            return {**times, "answers": [], "steps": [reading, step]}

    def factor(verify_s: float, pass_s: float) -> float:
        stated = dataclasses.replace(SETUP, verify_step_s=verify_s, draft_pass_s=pass_s)
        return stretch_to_hold(cast(Worker, Slow()), stated, Shape(), 1)

    assert factor(0.1, 0.03) == pytest.approx(1.2 * 0.12 / 0.1)
    assert factor(0.1, 0.01) == pytest.approx(1.2 * 0.02 / 0.01), "two edges share one core"
    assert factor(0.2, 0.03) == 1.0
    assert factor(0.0, 0.0) == 1.0


def test_stretched_times_keep_their_proportions() -> None:
    link = Conditions(0.01, 1e6, 2e6, 0.001)
    stated = dataclasses.replace(SETUP, verify_step_s=0.1, draft_pass_s=0.04, conditions=link)
    longer = stated.stretched(1.5)
    assert (longer.verify_step_s, longer.draft_pass_s) == pytest.approx((0.15, 0.06))
    assert dataclasses.astuple(longer.conditions) == pytest.approx(
        (0.015, 1e6 / 1.5, 2e6 / 1.5, 0.0015)
    )
    assert longer.stretch == 1.5


def test_steps_that_take_longer_than_stated_are_counted() -> None:
    """Two of the steps of RUN only verify: 2 s and 1 s; the others read prompts too."""
    case = Case("plain", dataclasses.replace(SETUP, verify_step_s=1.0), 2)
    (row,) = make_rows({case: [RUN, RUN]}, PRICES)
    assert row.late == 0.5
    (row,) = make_rows({Case("plain", SETUP, 2): [RUN]}, PRICES)
    assert row.late == 0, "where no time is stated none is exceeded"


def test_runs_come_back_from_their_file_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    case = Case("plain", dataclasses.replace(SETUP, conditions=Conditions(0.02)), 2)
    deep = Case("no-pipeline", case.setup, 2, depth=3)
    begin(path, EVALUATION)
    with pytest.raises(ValueError, match="has no run yet"):
        read(path)
    add(path, line_of(case, RUN))
    assert read(path) == (EVALUATION, {case: [RUN]})
    drafting = dataclasses.replace(RUN, drafting=((1.0, 2.0),))
    for one, run in ((deep, drafting), (case, RUN)):
        add(path, line_of(one, run))
    add(path, {"figures": {}})
    assert read(path) == (EVALUATION, {case: [RUN, RUN], deep: [drafting]})
    assert "Infinity" not in path.read_text()
    with path.open("a") as file:
        file.write('{"mode": "plain", "run": {"mode": 3}}')
    with pytest.raises(ValueError, match="line 6: expected a run"):
        read(path)


def test_a_stopped_evaluation_has_its_tables(tmp_path: Path) -> None:
    """The baseline has one repetition more than SpecEdge, which the stop has cut off."""
    ours, base = a_row("specedge", [20.0]), a_row(SERVER_ONLY, [10.0, 40.0])
    assert ours.ratio(base, "tokens_per_s") == (2.0, 2.0, 2.0)
    console = Console(file=io.StringIO(), width=300)
    print_report([ours, base], EVALUATION, console)
    assert "2.00" in cast(io.StringIO, console.file).getvalue()


def test_prices_have_names() -> None:
    prices = read_prices("a100-40gb", "rtx-4090")
    assert prices.server == pytest.approx(0.001125)
    assert prices.edge == pytest.approx(0.0000972, rel=1e-3)
    with pytest.raises(ValueError, match="there are a100-40gb"):
        read_prices("abacus", "free")


def test_the_search_keeps_a_budget_that_was_asked_for() -> None:
    def shapes(*argv: str) -> set[int]:
        return {shape.max_budget for shape in search_shapes(parse_options(list(argv)))}

    assert shapes("--max-budget", "32") == {32}
    assert len(shapes()) > 1


def test_clients_share_the_questions_and_the_clock_stops_when_one_is_idle() -> None:
    """Two clients must be at work at once, or the barrier would never open."""
    barrier = threading.Barrier(2, timeout=60)

    def client(number: int) -> int:
        barrier.wait()
        return number

    answers, start_s, end_s = ask_all([client, client], 10)
    assert sorted(answers) == list(range(10))
    assert start_s < end_s


@pytest.mark.parametrize(
    ("name", "setup"),
    [
        ("edge_worker", {"config": {"server": "127.0.0.1"}, "draft_pass_s": 0.0}),
        (
            "server_only",
            {"clients": 1, "weights": "stored", "model": "/nothing", "draft": "/nothing"},
        ),
    ],
)
def test_a_worker_that_dies_says_so_in_a_line(
    name: str, setup: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    early = pytest.raises(ChildProcessError, match=f"{name} ended early; its message is above")
    with Worker(f"runtime.bench.{name}", frozenset({0}), setup) as worker, early:
        worker.wait_ready()
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(rf"runtime.bench.{name}: (--server is '127.0.0.1'|/nothing does not)", line)


def test_the_baseline_writes_the_text_of_transformers(tiny_pair: tuple[Path, Path]) -> None:
    """Two jobs of two clients; the second one must not find the KV that the first one left."""
    import torch
    from transformers import AutoModelForCausalLM

    from runtime.bench.server_only import Baseline
    from runtime.edge.draft.drafter import Drafter
    from runtime.edge.draft.speculation import TreeShape
    from runtime.model.open import open_engine

    judge = AutoModelForCausalLM.from_pretrained(tiny_pair[0]).eval()
    target, draft = (
        open_engine(str(path), "float32", "cpu", lambda _: 8192, 16) for path in tiny_pair
    )
    drafter = Drafter(draft)
    sampling = {"max_tokens": 12, "temperature": 0.0, "seed": 0, "stop_ids": [257]}
    baseline = Baseline(target, drafter, drafter.vocabulary_size, sampling, n_clients=2)
    prompts = [[(7 * i + 3 * n) % 250 for n in range(40 + i)] for i in range(3)]
    hits = []
    for _ in range(2):
        done = baseline.serve(prompts, TreeShape(8, 4, 3, 4), n_clients=2)
        hits.append(baseline.scheduler.hit_tokens)
        for answer in done["answers"]:
            prompt = torch.tensor([prompts[answer["prompt"]]])
            with torch.no_grad():
                text = judge.generate(prompt, max_new_tokens=12, do_sample=False)[0]
            assert list(answer["ids"]) == text[prompt.shape[1] :].tolist()
            assert answer["arrivals"][-1][1] == 12
        assert len(done["answers"]) == 3
        assert max(len(step["requests"]) for step in done["steps"]) == 2
        assert sum(a["verifications"] for a in done["answers"]) < 3 * 12
    assert hits[1] == hits[0]


def options_for(pair: tuple[Path, Path], questions: Path, *more: str) -> list[str]:
    models = ["--model", str(pair[0]), "--draft", str(pair[1])]
    workload = ["--prompts", str(questions), "--per-task", "3", "--max-tokens", "24"]
    return [*models, *workload, "--edges", "1", "--repeats", "1", "--max-budget", "8", *more]


def test_an_evaluation_from_its_command_line(
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Real processes, a link and a trace; every mode writes the plain text, at temperature 1."""
    questions = tmp_path / "questions.jsonl"
    texts = ["hello", "why?", "Ünïcödé 日本"]
    questions.write_text("\n".join(json.dumps({"category": "qa", "turns": [t]}) for t in texts))
    result = tmp_path / "result.jsonl"
    argv = options_for(
        tiny_pair, questions, "--quick", "--temperature", "1", "--rtt-ms", "4",
        "--json", str(result), "--modes", SERVER_ONLY, "specedge",
        "--draft-pass-ms", "1", "--verify-ms", "3", "--replayed", "3", "--objective-ms", "60000",
    )  # fmt: skip
    monkeypatch.setattr("runtime.bench.command.QUICK_DEPTHS", (3,))
    monkeypatch.setattr("sys.argv", ["runtime.bench", *argv])
    assert main() == 0, capfd.readouterr().err
    report = json.loads(result.read_text().splitlines()[-1])["figures"]
    evaluation, runs = read(result)
    again = to_json(make_rows(runs, evaluation.prices), evaluation)
    assert json.loads(json.dumps(again)) == report
    rows = {row["mode"]: row for row in report["rows"]}
    assert set(rows) == {"plain", SERVER_ONLY, "specedge", REPLAYED}
    for row in rows.values():
        assert row["texts_not_plain"] == 0
        assert row["median"]["tokens_per_s"] > 0
        assert 0 < row["median"]["verifying"] <= 1
        assert row["median"]["verify_ms"] >= 3
    assert rows["plain"]["median"]["tokens_per_verification"] == 1
    assert rows[SERVER_ONLY]["median"]["tokens_per_verification"] > 1.2
    assert rows[SERVER_ONLY]["median"]["draft_ms"] >= 1
    assert report["bound"]["share"] > 0
    within = {one["mode"]: one for one in report["clients_within_objective"]}
    assert within[REPLAYED]["by_p99"] == within[REPLAYED]["by_mean"] == 3
    table = capfd.readouterr().out
    assert re.search(r"60000 ms between tokens: plain, RTT \S+ ms: 1 client\(s\) by", table)
    assert "layer split, simulated" in table
    assert "draft passes padded to" in table


def test_what_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for argv, sentence in (
        (["--prompts", str(tmp_path / "nowhere")], "nowhere"),
        (["--edge-price", "abacus"], "no price for 'abacus'"),
        (["--objective-ms", "0"], "must be above 0"),
        (["--stretch"], "lengthens what --verify-ms and --draft-pass-ms state"),
        (["--replayed", "4", "500"], "500 clients cannot all be busy"),
    ):
        monkeypatch.setattr("sys.argv", ["runtime.bench", *argv])
        assert main() == 2
        assert sentence in capfd.readouterr().err


def test_every_mode_is_understood_by_server_and_edge() -> None:
    from runtime.arguments import parse
    from runtime.config import EdgeConfig, ServerConfig

    for mode in MODES.values():
        EdgeConfig(**mode.edge)
        parse(ServerConfig, mode.server, {}, "server")
    assert isinstance(parse_options([]), argparse.Namespace)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_the_paper_has_options_that_exist(name: str) -> None:
    options = parse_options([*PAPER, *FIGURES[name]])
    cases = make_cases(SETUP, options.modes, [0.01], options.depths, options.replayed)
    assert cases
    assert options.tasks == [] or options.tasks[0] in TASKS
    assert [shape.max_budget for shape in search_shapes(options)] == [32] * 5
