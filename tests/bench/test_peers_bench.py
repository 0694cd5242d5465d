"""python -m bench.peers: its files, its three engines and its judging, on a small random model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("xllamacpp")

import gguf
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from bench.peers import __main__ as peers
from bench.peers import worker
from bench.peers.figures import Line
from bench.peers.files import FORMATS, write_as, write_checkpoint
from bench.peers.in_turns import TOLERANCE, Measured
from bench.peers.models import MODELS
from runtime.model.config import ModelConfig
from runtime.model.gguf import GgufFile
from runtime.model.weights import expected_shapes
from tests.model.gguf_files import VOCAB, Sizes, base, write

TEXT = [3, 17, 41, 5, 9, 30, 22, 8, 40, 11, 2, 19]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose rows are whole blocks of every format."""
    sizes = Sizes(hidden_size=256, n_heads=4, n_kv_heads=2, head_dim=64, mlp=256)
    case = base("llama", sizes, np.random.default_rng(5))
    return write(case, tmp_path_factory.mktemp("peers") / "model.gguf")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, source: Path):
    return MODELS[request.param](source, threads=1)


def matrices(path: Path) -> dict[str, np.ndarray]:
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = values.reshape([*map(int, tensor.shape[::-1])])
    return found


# of a matrix's largest number; a format of few bits keeps its blocks' ends badly
@pytest.mark.parametrize(
    ("name", "error"),
    [("q4_0", 0.14), ("q8_0", 0.01), ("f16", 0.001), ("q4_k", 0.1), ("q6_k", 0.04)],
)
def test_a_file_in_another_format_is_the_same_model(source, tmp_path, name, error) -> None:
    path = tmp_path / "other.gguf"
    assert write_as(FORMATS[name], source, path) == f"16 {FORMATS[name].name}"
    old, new = matrices(source), matrices(path)
    assert old.keys() == new.keys()
    for tensor, values in old.items():
        worst = abs(values - new[tensor]).max() / abs(values).max()
        assert worst <= (error if values.ndim == 2 else 0), tensor
    theirs, ours = GgufFile(source).config, GgufFile(path).config
    assert theirs == ours


def test_rows_that_are_no_whole_blocks_get_the_narrower_format(tmp_path) -> None:
    case = base("llama", Sizes(), np.random.default_rng(6))
    case.fields["feed_forward_length"] = 96
    path = write(case, tmp_path / "small.gguf")
    assert write_as(Kind.Q4_K, path, tmp_path / "other.gguf") == "16 Q5_0"


class SmallDraft:
    """A checkpoint whose head has rows for some tokens only, as the embedded draft's."""

    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
        intermediate_size=96, rms_norm_eps=2**-17, rope_theta=1e4, max_context=64, head_size=9,
    )  # fmt: skip

    def __init__(self) -> None:
        self.shapes = expected_shapes(self.config)
        random = torch.Generator().manual_seed(3)
        self._tensors = {n: torch.randn(s, generator=random) for n, s in self.shapes.items()}
        self._tensors["head_ids"] = torch.arange(9) * 5

    def stored(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def test_a_draft_as_gguf_is_the_draft(tmp_path, source) -> None:
    """Every tensor comes back under its name; tokens that the draft has no row for get zeros."""
    draft, path = SmallDraft(), tmp_path / "draft.gguf"
    write_checkpoint(draft, source, path, Kind.Q8_0)
    written = GgufFile(path)
    assert written.shapes.keys() == draft.shapes.keys() - {"head_ids"}
    config = replace(draft.config, head_size=VOCAB)
    assert written.config == config
    for name in written.shapes:
        ours, theirs = written.read(name), draft.stored(name)
        if name == "lm_head.weight":
            assert not ours[[token for token in range(VOCAB) if token % 5 or token > 40]].any()
            ours = ours[::5][:9]
        assert (ours - theirs).abs().max() <= 0.005 * theirs.abs().max(), name


def test_all_engines_read_step_and_cut_alike(model, source) -> None:
    judge = MODELS["transformers"](source, threads=1)
    whole = judge.step(TEXT).copy()

    def agrees(logits: np.ndarray, expected: np.ndarray) -> None:
        assert logits.shape == expected.shape
        assert abs(logits - expected).max() <= 0.02 * abs(whole).max()

    model.cut(0)
    agrees(model.step(TEXT[:6], all_logits=False), whole[5:6])
    agrees(model.step(TEXT[6:9]), whole[6:9])
    model.cut(7)
    agrees(model.step(TEXT[7:]), whole[7:])
    model.cut(0)
    agrees(model.step(TEXT), whole)


def test_greedy_text_is_judged_token_by_token(model, source) -> None:
    judge = MODELS["transformers"](source, threads=1)
    judge.step(TEXT)
    model.cut(0)
    model.step(TEXT)
    clock = iter(range(100)).__next__
    answer = worker.decode(model, clock, length=4, first=TEXT[4], count=6)
    assert answer["s"] == 1
    gaps = worker.gaps(judge, clock, 4, TEXT[4], answer["ids"])["gaps"]
    assert max(gaps) <= TOLERANCE
    wrong = [*answer["ids"][:3], (answer["ids"][3] + 1) % 48, *answer["ids"][4:]]
    worse = worker.gaps(judge, clock, 4, TEXT[4], wrong)["gaps"]
    assert worse[:3] == gaps[:3]
    assert worse[3] > gaps[3]


def test_rows_give_the_log_probabilities_of_what_follows(model, source) -> None:
    judge = MODELS["transformers"](source, threads=1)
    expected = torch.from_numpy(judge.step(TEXT).copy()).double().log_softmax(-1)
    model.cut(0)
    model.step(TEXT)
    clock = iter(range(100)).__next__
    answer = worker.rows(model, clock, 4, TEXT[4:8], TEXT[5:9], repeats=3)
    right = expected[range(4, 8), TEXT[5:9]].tolist()
    assert answer["logprobs"] == pytest.approx(right, abs=0.2)
    read = worker.read(model, clock, TEXT[:7], [TEXT[7]])
    assert read["logprobs"] == pytest.approx([float(expected[6, TEXT[7]])], abs=0.2)


def test_an_engine_that_contradicts_itself_is_no_figure() -> None:
    measured = Measured({"s": 1.0, "ids": [1, 2]}, 0.0)
    measured.add({"s": 3.0, "ids": [1, 2]})
    measured.add({"s": 2.0, "ids": [1, 2]})
    assert measured.median_s == 2.5
    with pytest.raises(ValueError, match="another answer"):
        measured.add({"s": 1.0, "ids": [1, 3]})


def test_ratios_are_ours_by_llama_cpps() -> None:
    line = Line(
        "decode",
        "decoding",
        "tokens/s",
        {"specedge": 150.0, "llama.cpp": 100.0, "transformers": 9.0},
        {"specedge": 0.0, "llama.cpp": 0.123, "transformers": 0.0},
    )
    assert line.numbers("_q4_0") == {
        "decode_ratio_q4_0": 1.5,
        "decode_tokens_per_s_specedge_q4_0": 150.0,
        "decode_tokens_per_s_llama_cpp_q4_0": 100.0,
        "decode_tokens_per_s_transformers_q4_0": 9.0,
    }
    row = ("file", "decoding", "tokens/s", "150", "100", "1.50", "9", "0.00 / 0.12")
    assert line.row("file") == row
    nothing = Line("different", "texts", "texts", {"specedge": 0, "llama.cpp": 0})
    assert nothing.ratio is None
    assert nothing.row("file")[-3:] == ("-", "-", "-")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--formats", "q9"], "expected some of q4_0"),
        (["--threads", "0"], "1 or more"),
        (["--prompt", "64"], "a prompt has 145 to"),
        (["--tokens", "1000"], "a prompt has"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(monkeypatch, capsys, options, sentence) -> None:
    monkeypatch.setattr("sys.argv", ["peers", *options])
    with pytest.raises(SystemExit) as end:
        peers.parse_options()
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
