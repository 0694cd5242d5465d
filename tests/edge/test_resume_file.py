"""The file of the running answer: whole at every moment, private, and checked when it is read."""

import errno
import json
import random
from pathlib import Path

import pytest

from runtime.config import ConfigError, EdgeConfig
from runtime.constraint import Constraint
from runtime.edge import resume_file
from runtime.edge.client import Edge
from runtime.edge.resume import Transcript
from runtime.sampling import Sampling

VOCABULARY = bytes(range(16))
SAMPLED = {"max_tokens": 9, "stop_ids": [], "logit_bias": [], "constraint": None}


def answer(seed: int = 0, accepted: int = 5) -> Transcript:
    rng = random.Random(seed)
    draws = {"temperature": rng.random(), "top_p": rng.random(), "seed": rng.getrandbits(63)}
    rule = {"presence_penalty": -0.5, "logit_bias": ((3, -100.0), (2**17, 0.25))}
    constraint = Constraint("regex", "(é|\n)+") if seed % 2 else None
    sampling = Sampling(
        100,
        **draws,
        **rule,
        top_k=rng.randrange(50),
        stop_ids=(2, 7),
        constraint=constraint,
        adapter="sql" if seed % 3 else None,
    )
    ids = [rng.randrange(2**18) for _ in range(20 + accepted)]
    return Transcript(ids[:20], sampling, ids[20:], stop=("\n\n", "é"))


@pytest.mark.parametrize("seed", range(10))
def test_what_is_saved_is_loaded(tmp_path: Path, seed: int) -> None:
    path, saved = tmp_path / "answer", answer(seed, accepted=seed)
    for _ in range(2):  # over an old one as well
        resume_file.save(path, saved, VOCABULARY)
    loaded = resume_file.load(path, VOCABULARY)
    assert loaded == saved
    assert loaded.rest[0] == saved.prompt + saved.accepted
    assert loaded.rest[1].max_tokens == 100 - seed
    assert loaded.rest[1].output_tokens == seed
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_edge_killed_while_it_writes_leaves_the_old_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answer"
    resume_file.save(path, answer(1), VOCABULARY)

    def dies(table: object, file: object) -> None:
        file.write('{"format": 1, "prom')
        raise KeyboardInterrupt

    monkeypatch.setattr(resume_file.json, "dump", dies)
    with pytest.raises(KeyboardInterrupt):
        resume_file.save(path, answer(2), VOCABULARY)
    assert resume_file.load(path, VOCABULARY) == answer(1)
    monkeypatch.undo()
    resume_file.save(path, answer(3), VOCABULARY)
    assert resume_file.load(path, VOCABULARY) == answer(3)


def test_rounds_are_appended_and_one_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path, told = tmp_path / "answer", answer(4)
    file, sizes = resume_file.ResumeFile(path, VOCABULARY), []
    for tokens in ((), (1,), (2**17, 3), (), (4, 5, 6)):
        told.accepted += tokens
        file.keep(told, tokens)
        assert resume_file.load(path, VOCABULARY) == told
        sizes.append(path.stat().st_size)
    told.finish = "length"
    file.keep(told, ())
    assert resume_file.load(path, VOCABULARY) == told
    whole = path.read_bytes()
    assert sizes[-1] - sizes[0] < 100, "a round costs what it brought, not what was there before"
    for size in range(sizes[0], len(whole)):
        path.write_bytes(whole[:size])
        kept = resume_file.load(path, VOCABULARY)
        assert kept.accepted == told.accepted[: len(kept.accepted)]
        assert kept.finish is None
        assert len(kept.accepted) >= 5
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_full_disk_is_told_once_and_the_answer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rounds: int
) -> None:
    path, told = tmp_path / "answer", answer()
    file = resume_file.ResumeFile(path, VOCABULARY)
    for _ in range(rounds):
        file.keep(told, ())

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resume_file.os, "fsync" if rounds == 0 else "open", full)
    for _ in range(3):
        file.keep(told, (1,))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert [child.name for child in tmp_path.iterdir()] == ["answer"] * rounds


def test_an_answer_that_ended_unread_is_read_by_the_next_edge(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    path = tmp_path / "answer"
    config = EdgeConfig(
        server=tiny_server, draft=str(tiny_pair[1]), resume_file=str(path), max_tokens=40
    )
    for is_stopped in (False, True):
        with Edge(config) as edge:
            plain = edge.generate("x").text
            stops = [plain[20:24]] if is_stopped else []
            written = edge.generate("x", stop=stops)
            with pytest.raises(ConfigError, match=r"answer that has not ended|keeps one answer"):
                edge.generate("y")
            written._writing.result()
        assert path.exists()
        with Edge(config) as edge:
            sent = edge._worker.uplink.bytes_sent
            answer = edge.resume()
            assert answer.text == (plain.partition(stops[0])[0] if stops else plain)
            assert answer.finish_reason == ("stop" if stops else "length")
            assert answer.tokens == written.tokens
            assert edge._worker.uplink.bytes_sent == sent
        assert not path.exists()


def test_a_folder_is_no_answer_that_has_not_ended(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    config = EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), resume_file=str(tmp_path))
    with Edge(config) as edge:
        with pytest.raises(ConfigError, match="is a folder or a device; expected a file"):
            edge.generate("x")
        with pytest.raises(ConfigError, match="is a folder or a device; expected a file"):
            edge.resume()


def test_a_name_that_cannot_be_looked_at_is_a_sentence(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    config = EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), resume_file="a" * 300)
    with Edge(config) as edge, pytest.raises(ConfigError, match="cannot be looked at: File name"):
        edge.generate("x")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "precious"
    victim.write_text("mine")
    (tmp_path / "answer.new").symlink_to(victim)
    resume_file.save(tmp_path / "answer", answer(), VOCABULARY)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 1}, "another version"),
        ({"vocabulary": "00" * 16}, "another draft model"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "hello"}, "list of numbers"),
        ({"accepted": [1, 2.5]}, "list of numbers"),
        ({"accepted": [1] * 100}, "max_tokens is 0"),
        ({"stop": "x"}, "stop strings are a list of texts"),
        ({"stop": ["x", ""]}, "stop strings are a list of texts"),
        ({"stop": [7]}, "stop strings are a list of texts"),
        ({"sampling": {"max_tokens": 5}}, "stop_ids"),
        ({"sampling": SAMPLED | {"temperature": -1}}, "temperature is -1"),
        ({"sampling": SAMPLED | {"top": 1}}, "top"),
        ({"sampling": SAMPLED | {"presence_penalty": 3}}, "presence_penalty is 3"),
        ({"sampling": SAMPLED | {"logit_bias": [[1, 101]]}}, "bias is 101"),
        ({"sampling": SAMPLED | {"logit_bias": [["1", 1]]}}, "list of numbers"),
        ({"sampling": SAMPLED | {"logit_bias": [1]}}, "no answer"),
        ({"sampling": SAMPLED | {"constraint": {"kind": "sql", "text": "x"}}}, "kind 'sql'"),
        ({"sampling": SAMPLED | {"constraint": {"kind": "regex", "text": ""}}}, "has 0 bytes"),
        ({"sampling": SAMPLED | {"constraint": "x"}}, "no answer"),
        ({"sampling": []}, "no answer"),
        ({"finish": "never"}, "does not end with 'never'"),
    ],
)
def test_a_file_that_is_not_right_says_why(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "answer"
    resume_file.save(path, Transcript([1], Sampling(100)), VOCABULARY)
    table = json.loads(path.read_text()) | change
    if change == {"prompt": []}:
        table["accepted"] = []
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=sentence):
        resume_file.load(path, VOCABULARY)


def test_a_file_that_is_no_file_says_why(tmp_path: Path) -> None:
    path = tmp_path / "answer"
    with pytest.raises(ConfigError, match="cannot read"):
        resume_file.load(path, VOCABULARY)
    with pytest.raises(ConfigError, match="cannot write"):
        resume_file.save(tmp_path / "nowhere" / "answer", answer(), VOCABULARY)
    for text in ("", "{", "[]", "null", '"x"'):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="no answer that can go on"):
            resume_file.load(path, VOCABULARY)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        resume_file.load(path, VOCABULARY)


def test_an_answer_that_has_not_ended_is_not_written_over(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    path = tmp_path / "answer"
    config = EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), resume_file=str(path))
    with Edge(config) as edge:
        digest = edge.tokenizer.vocabulary_hash()
        with pytest.raises(ConfigError, match="cannot read"):
            edge.resume()
        resume_file.save(path, answer(), digest)
        with pytest.raises(ConfigError, match="without --prompt to go on"):
            edge.generate("x")
        assert resume_file.load(path, digest) == answer()
    with pytest.raises(ConfigError, match="does not go with --chat"):
        EdgeConfig(chat=True, resume_file=str(path))
