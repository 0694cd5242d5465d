"""The paper's table with stand-in models: its numbers, its process, and one row end to end."""

import dataclasses
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from runtime.bench import __main__ as bench
from runtime.bench import figures
from runtime.bench.__main__ import table_options
from runtime.bench.records import Step
from runtime.bench.standin import calibration, paper, table
from runtime.bench.standin.agreement import CANDIDATES, TOKENS, Agreement, rank_weights
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.gain import gains, gains_over, walk
from runtime.bench.timeline import Timeline
from runtime.edge.draft.speculation import TreeShape
from runtime.tree import Tree


def test_the_rows_are_those_of_the_paper() -> None:
    """It states the ratios of its own columns, and their means."""
    assert len(paper.TABLE_1) == 18
    stated = [2.09, 2.02, 2.27, 2.27, 2.22, 2.14, 2.08, 2.10, 2.20, 2.14, 2.50, 2.31, 2.26, 2.42]
    ratios = [row.throughput_ratio for row in paper.TABLE_1]
    assert ratios[:14] == pytest.approx(stated, abs=0.006)
    assert fmean(ratios) == pytest.approx(paper.MEAN_THROUGHPUT_RATIO, abs=0.01)
    cost = fmean(row.cost_ratio for row in paper.TABLE_1)
    assert cost == pytest.approx(paper.MEAN_COST_RATIO, abs=0.01)


def test_nothing_of_the_specedge_columns_goes_into_the_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = paper.times()
    forged = tuple(
        dataclasses.replace(
            row, specedge=(9.0, 9.0), specedge_tokens_s=999.0, specedge_ktokens_dollar=999.0
        )
        for row in paper.TABLE_1
    )
    monkeypatch.setattr(paper, "TABLE_1", forged)
    assert paper.times() == before


@pytest.mark.parametrize("pair", ["14B/1.7B", "14B/0.6B", "32B/1.7B"])
def test_the_times_give_the_cycle_of_the_server_only_method(pair: str) -> None:
    """And leave it the share of verification that section 5.2 tells of: 40 to 50 % is drafting."""
    times = paper.times()[pair]
    cycle_ms = times.verify_ms + times.depth * times.server_pass_ms
    assert cycle_ms == pytest.approx(paper.cycle_ms(pair))
    assert 0.4 <= 1 - times.verify_ms / cycle_ms <= 0.5


def test_a_process_is_honest() -> None:
    """The target's token has the rank that the probabilities give it; candidates differ."""
    process = dataclasses.replace(calibration.FITTED, text=0.0, memory=0.0)
    found, weights = np.zeros(CANDIDATES), np.zeros(CANDIDATES)
    for seed in range(20):
        agreement = Agreement.of(process, seed)
        right = (np.arange(TOKENS) + 1) % TOKENS
        found += (agreement.candidates == right[:, None]).sum(axis=0)
        weights += rank_weights(agreement.scores, process.sharpness).sum(axis=0)
        assert all(len(set(row)) == CANDIDATES for row in agreement.candidates.tolist())
        assert (np.diff(agreement.scores, axis=1) <= 0).all()
        assert np.exp(agreement.scores).sum(axis=1).max() <= 1 + 1e-9
    # within five deviations of a binomial count
    slack = 5 * np.sqrt(weights)
    assert (np.abs(found - weights) < slack).all()


def test_right_and_wrong_come_in_runs_as_they_are_said_to() -> None:
    """Neighbours are more alike the more memory there is, and texts differ the more they share."""

    def hits(text: float, memory: float) -> np.ndarray:
        process = dataclasses.replace(calibration.FITTED, text=text, memory=memory)
        right = (np.arange(TOKENS) + 1) % TOKENS
        rows = [Agreement.of(process, seed).candidates[:, 0] == right for seed in range(10)]
        return np.array(rows, float)

    def neighbours(x: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in x]))

    def texts(x: np.ndarray) -> float:
        return float(x.reshape(-1, 256).mean(axis=1).var())

    assert neighbours(hits(0.0, 0.0)) < 0.05 < 0.2 < neighbours(hits(0.0, 0.6))
    assert texts(hits(0.0, 0.0)) < 0.3 * texts(hits(0.3, 0.0))


def test_the_same_seed_is_the_same_process() -> None:
    one, same, other = (Agreement.of(calibration.FITTED, seed) for seed in (1, 1, 2))
    assert (one.candidates == same.candidates).all()
    assert (one.candidates != other.candidates).any()


def test_a_walk_goes_as_far_as_a_path_of_the_tree_follows_the_text() -> None:
    dice = random.Random(5)
    for _ in range(200):
        size = dice.randrange(12)
        tree = _random_tree(dice, size)
        text = [dice.randrange(3) for _ in range(1 + dice.randrange(6))]
        paths = [[tree.tokens[n - 1] for n in tree.path(node)] for node in range(size + 1)]
        follow = [node for node, path in enumerate(paths) if path == text[:-1][: len(path)]]
        deepest = max(follow, key=lambda node: len(paths[node]))
        assert walk(tree, text) == (deepest, len(paths[deepest]))


def _random_tree(dice: random.Random, size: int) -> Tree:
    """Children of one node differ."""
    tokens: list[int] = []
    parents: list[int] = []
    while len(tokens) < size:
        parent, token = dice.randrange(len(tokens) + 1), dice.randrange(4)
        if (parent, token) not in set(zip(parents, tokens, strict=True)):
            tokens.append(token)
            parents.append(parent)
    return Tree(tuple(tokens), tuple(parents))


def test_gains_add_up_to_the_text() -> None:
    agreement = calibration.agreement("14B/1.7B qa")
    drafter = StandInDrafter(agreement, 0.0, [])
    text = [(5 + i) % TOKENS for i in range(100)]
    gained = gains_over(drafter, text[:1], text[1:], TreeShape(32, 6, 4, 6))
    assert 1 + sum(gained) == 99
    assert all(1 <= gain <= 5 for gain in gained)
    nothing = gains(StandInDrafter(agreement, 0.0, []), TreeShape(0, 6, 4, 6))
    assert set(nothing) == {1}


@pytest.mark.parametrize("row", paper.TABLE_1, ids=calibration.name)
def test_every_row_is_calibrated_on_its_server_only_columns(row: paper.Row) -> None:
    found = json.loads(calibration.FILE.read_text(encoding="utf-8"))[calibration.name(row)]
    assert found["paper"] == list(row.server_only)
    assert found["gives"][0] == pytest.approx(row.server_only[0], rel=0.015)
    assert found["gives"][1] == pytest.approx(row.server_only[1], rel=0.08)


def test_what_is_calibrated_can_be_had_again() -> None:
    row = paper.TABLE_1[3]
    found = json.loads(calibration.FILE.read_text(encoding="utf-8"))[calibration.name(row)]
    process = dataclasses.replace(
        calibration.FITTED, mean=found["mean"], deviation=found["deviation"]
    )
    shape = calibration.server_only_shape(row)
    got = calibration.tokens_per_verification(process, shape)
    assert got == pytest.approx(found["gives"], abs=0.001)


def test_a_row_through_server_and_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every edge checks its text.

    Whether steps were late is this machine's business, and so is how often the server decoded
    plainly because an edge was.
    """
    rows = tmp_path / "rows.jsonl"
    options = ["--pairs", "14B/0.6B", "--tasks", "math", "--answers", "2", "--max-tokens", "24"]
    assert table.main(table_options([*options, "--json", str(rows)])) in (0, 1)
    (row,) = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    assert (row["pair"], row["task"], row["mode"]) == ("14B/0.6B", "math", "specedge")
    for method in ("specedge", "server_only"):
        assert 1 < row[method]["tokens_per_verification"] <= 20
        assert row[method]["tokens_per_s"] > 0
    assert 0 < row["specedge"]["drafted"] <= 1
    assert 0 <= row["late"] <= 1
    assert {client for *_, clients in row["second"]["verified"] for client in clients} == {0, 1}
    assert "stand-in" in capsys.readouterr().out


def test_steps_that_take_longer_than_stated_are_told_of() -> None:
    steps = [Step(0.0, 0.0501), Step(0.1, 0.16), Step(0.2, 0.25), Step(0.3, 0.351)]
    assert table.late_share(steps, 50.0) == 0.25
    assert table.late_share([], 50.0) == 0.0


def test_what_others_had_of_the_cores() -> None:
    """The first step's is of the time before the run."""
    steps = [Step(0.0, 0.1, others_s=9.0), Step(0.5, 0.6, others_s=0.25), Step(1.0, 1.1)]
    assert table.others_share(steps) == pytest.approx(0.25)
    assert table.others_share(steps, steps[1:], steps[:1], []) == pytest.approx(0.25 / 1.5)
    assert table.others_share([]) == 0.0


def test_why_figures_do_not_count() -> None:
    quiet, busy, slow = (
        replaced(late=late, others=others)
        for late, others in ((0.02, 0.9), (0.3, 0.2), (0.3, 0.05))
    )
    assert table.verdicts([quiet]) == []
    (sentence,) = table.verdicts([quiet, busy, busy])
    assert sentence.startswith("2 rows had steps")
    assert "up to 20% of the server's cores meanwhile" in sentence
    (sentence,) = table.verdicts([slow, quiet])
    assert sentence.startswith("1 rows had steps")
    assert "too slow" in sentence
    assert len(table.verdicts([slow, busy])) == 2


def replaced(**fields: Any) -> table.Measured:
    """A row that was measured."""
    numbers = figures.Figures(*[1.0] * len(dataclasses.fields(figures.Figures)))
    timeline = Timeline(((0.0, 90.0, (0,)), (90.0, 180.0, (0, 1))), (((0.0, 11.0),), ()))
    row = table.Measured(
        *("14B/1.7B", "qa", "specedge", numbers, numbers), 1.0, 0.0, 0.0, 14.07, timeline
    )
    return dataclasses.replace(row, **fields)


def test_rows_are_drawn(tmp_path: Path) -> None:
    """The last of two rows of one name; bars stand beside the paper's, a second below."""
    pytest.importorskip("matplotlib")
    from runtime.bench.standin import plots

    def line(ours: float) -> str:
        numbers = dataclasses.replace(replaced().specedge, tokens_per_s=ours)
        return json.dumps(dataclasses.asdict(replaced(specedge=numbers)))

    file, folder = tmp_path / "rows.jsonl", tmp_path / "plots"
    file.write_text(f"{line(3.0)}\n{line(2.5)}\n", encoding="utf-8")
    found, key = plots.read(file), ("specedge", "14B/1.7B", "qa")
    assert found.ratios == {key: 2.5}
    assert found.rtt_ms == 14.07
    assert found.timelines == {key: replaced().second}
    bench.draw(bench.plot_options([str(file), str(folder)]))
    for name in ("table.png", "timeline.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: expected a row of the table"):
        plots.read(file)
    with pytest.raises(ValueError, match="there is no row to draw"):
        plots.write(plots.Found(), folder)


ROW = {
    **{"mode": "specedge", "pair": "14B/1.7B", "task": "qa", "rtt_ms": 14.07},
    **{"specedge": {"tokens_per_s": 60.0}, "server_only": {"tokens_per_s": 30.0}},
    "second": {"verified": [[0.0, 90.0, [0]]], "drafted": [[[0.0, 11.0]]]},
}
CARRIED = {
    **{"capacity": "simulated", "pair": "14B/1.7B", "task": "qa", "method": "plain"},
    **{"objective_ms": 50.0, "clients": 3},
}


@pytest.mark.parametrize(
    "line",
    [
        *(b"\xff\xfe\x00", b"[" * 100_000, json.dumps(ROW)[:100].encode()),
        *(
            json.dumps({**ROW, **wrong}).encode()
            for wrong in (
                *({"pair": "8B/1B"}, {"task": "chess"}, {"second": None}),
                {"second": {"verified": [["a", "b", [0]]], "drafted": [[]]}},
                {"server_only": {"tokens_per_s": 0.0}},
            )
        ),
        json.dumps({**CARRIED, "method": "magic"}).encode(),
        b'{"capacity": 1, "pair": "a", "task": "b", "method": "plain", "objective_ms": 1, '
        b'"clients": 1e400}',
    ],
)
def test_a_line_that_cannot_be_drawn_is_named(line: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "rows.jsonl"
    good = json.dumps(CARRIED if b'"capacity"' in line else ROW).encode()
    for lines, number in ((line, 1), (good + b"\n" + line, 2)):
        file.write_bytes(lines)
        with pytest.raises(ValueError, match=f"rows.jsonl, line {number}: expected a "):
            bench.draw(bench.plot_options([str(file), str(tmp_path)]))
    assert [*tmp_path.iterdir()] == [file]


def test_a_capacity_that_was_stopped_has_the_curves_it_came_to(tmp_path: Path) -> None:
    """A method without a figure has an empty line, and no letters for an axis."""
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    from runtime.bench.standin import capacity_plot

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(CARRIED), encoding="utf-8")
    figure, axes = plt.subplots()
    capacity_plot.panel(axes, "14B/1.7B", "qa", capacity_plot.read(file))
    points = {str(line.get_label()): line.get_xydata().tolist() for line in axes.get_lines()}
    plt.close(figure)
    assert points == {"plain": [[50.0, 3.0]], "server-only": [], "specedge": []}


def test_plots_without_matplotlib_say_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="plots need matplotlib"):
        bench.draw(bench.plot_options([str(tmp_path / "rows"), str(tmp_path / "png")]))


def test_an_option_that_is_wrong_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        table_options(["--answers", "1"])
    assert ended.value.code == 2
    assert "at least 2 answers" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no row .70B/8B qa.; there are"):
        calibration.agreement("70B/8B qa")
