"""Drafts in other tokens: what is said is what was drafted, and the model's cache never drifts."""

import codecs
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.foreign_drafter import ForeignDrafter, Shadow
from runtime.edge.draft.pieces import Pieces, whole_characters
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.edge.draft.suffixes import Suffixes
from runtime.edge.draft.translation import Said, Translation
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from specedge_kernels import draft_topk
from tests.edge.draft.test_drafter import fresh_logits
from tests.edge.draft.vocabularies import BYTES, drafts, target
from tests.edge.drafting import random_verdict

ROWS = 260  # of the tiny models; the last pieces of a vocabulary are beyond them
NAMES = list(drafts())
TEXT = "abcd ee 12 é🙂é abcdabcd\n\n12ee  "


def pieces(tokenizer: object, rows: int = 280) -> Pieces:
    return Pieces(Tokenizer(tokenizer, ()), rows)


@pytest.fixture(scope="module")
def translations() -> dict[str, Translation]:
    return {name: Translation(pieces(target()), pieces(draft)) for name, draft in drafts().items()}


@pytest.fixture
def drafting(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[ForeignDrafter, Translation]]]:
    """By the name of a vocabulary, whose last pieces the model lacks.

    Nothing is looked up: what is found depends on when one looks.
    """
    monkeypatch.setattr(Suffixes, "followers", lambda self, tail: [])
    made: list[Drafter] = []

    def make(name: str) -> tuple[ForeignDrafter, Translation]:
        translation = Translation(pieces(target()), pieces(drafts()[name], ROWS))
        made.append(Drafter(engines[0], translation.names))
        return ForeignDrafter(made[-1], translation), translation

    yield make
    for drafter in made:
        drafter._release_last()


@pytest.fixture(scope="module")
def engines(tiny_pair: tuple[Path, Path]) -> tuple[Engine, Engine]:
    """To draft with, and with room for many texts at once."""
    names = str(tiny_pair[1]), "float32", "cpu"
    return open_engine(*names, lambda _: 512, 16), open_engine(*names, lambda _: 65536, 16)


@given(st.binary(max_size=24))
def test_a_character_that_is_not_whole_is_left_out(data: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    decoder.decode(data)
    waiting, _ = decoder.getstate()
    whole = whole_characters(data)
    assert data.startswith(whole)
    assert len(data) - len(whole) in (0, len(waiting)) or waiting == b""
    if waiting:
        assert whole == data[: len(data) - len(waiting)]


@given(
    st.lists(st.one_of(st.binary(max_size=4), st.sampled_from(["é", "🙂", " ab", "abcd", "\n"])))
)
def test_bytes_become_tokens_that_spell_them(parts: list[bytes | str]) -> None:
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    own = BYTE_PAIRS
    assert b"".join(own.spelled[index] or b"" for index in own.encode(data)) == data


BYTE_PAIRS = pieces(target())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_and_said_again_is_the_same(
    translations: dict[str, Translation], name: str
) -> None:
    """In the target's own way to write the text, wherever the other tokenizer cuts it."""
    translation, tokenizer = translations[name], Tokenizer(target(), ())
    for text in (TEXT, TEXT[3:], "é", "<|start|>ab<|end|>", "abcdee" * 20):
        ids, said = tokenizer.encode(text, special=False), Said()
        names = translation.read((), ids)
        for one in names:
            said = translation.follow(said, one)
        assert list(translation.tokens(said)) == ids
        assert all(0 <= translation.names.own_id(one) < 280 for one in names)


def test_a_shuffled_vocabulary_has_the_targets_own_names(
    translations: dict[str, Translation],
) -> None:
    ids = Tokenizer(target(), ()).encode(TEXT + "<|end|>", special=False)
    assert translations["permuted"].read((), ids) == ids
    assert translations["permuted"].shared == 264
    assert translations["bytes"].shared == 257, "bytes, and one control token"


def from_scratch(oracle: Engine, shadow: Shadow, translation: Translation) -> dict:
    """Path -> children with their scores, of the expanded nodes, each by a pass of its own."""
    names, own = translation.names, shadow._own
    paths = [[], *(shadow.tree.path(node) for node in shadow.tree.expanded)]
    texts = [[names.own_id(name) for name in [*shadow.context, *path]] for path in paths]
    drafted = sorted((names.of[i], i) for i in range(ROWS) if i in names.drafted)
    logits = fresh_logits(oracle, texts)[:, [index for _, index in drafted]]
    said = [Said() for _ in paths]
    for row, path in enumerate(paths):
        for name in path:
            said[row] = translation.follow(said[row], name)
    positions = [len(own.context) + len(translation.tokens(one)) for one in said]
    ids, scores = draft_topk(
        logits.contiguous(),
        shadow.shape.max_branch_width,
        torch.full((len(paths),), own.noise.temperature),
        torch.full((len(paths),), own.noise.seed),
        torch.tensor(positions),
        torch.tensor([name for name, _ in drafted]),
    )
    rows = zip(paths, ids.tolist(), scores.tolist(), strict=True)
    return {tuple(path): dict(zip(i, s, strict=True)) for path, i, s in rows}


def children(shadow: Shadow) -> dict:
    """The same of the shadow's tree."""
    tree = shadow.tree
    found: dict = {(): {}} | {tuple(tree.path(node)): {} for node in tree.expanded}
    for node in tree.nodes:
        parent = tree.parents[node]
        share = tree.scores[node] - tree.scores[parent]
        found[tuple(tree.path(parent))][tree.tokens[node]] = share
    return found


def check_said(own: Speculation, shadow: Shadow, translation: Translation) -> None:
    """Each line is the tokenizer's own way to write its text, and counts for its share."""
    judge, expected = Tokenizer(target(), ()), dict[tuple[int, ...], float]()
    for node, line in zip(shadow.tree.nodes, shadow.lines(), strict=True):
        data = whole_characters(b"".join(map(translation.spelled, shadow.tree.path(node))))
        assert b"".join(BYTE_PAIRS.spelled[token] or b"" for token in line) == data
        text = data.decode("utf-8", "replace")
        if "\ufffd" not in text and not BYTE_PAIRS.control.keys() & line:
            assert list(line) == judge.encode(text, special=False)
        chance = math.exp(shadow.tree.scores[node])
        below = [n for n, parent in enumerate(shadow.tree.parents) if parent == node]
        share = chance - sum(math.exp(shadow.tree.scores[n]) for n in below)
        for length in range(1, len(line) + 1):
            expected[line[:length]] = expected.get(line[:length], 0.0) + max(share, 0.0)
    nodes = {tuple(own.tree.path(node)): node for node in own.tree.nodes}
    for path, node in nodes.items():
        assert math.exp(own.tree.scores[node]) == pytest.approx(expected.get(path, 0.0), abs=1e-9)
        assert own.tree.parents[node] < node
    assert expected.keys() <= nodes.keys()


def begun(temperature: float) -> Speculation:
    prompt = Tokenizer(target(), ()).encode(TEXT, special=False)
    shape = TreeShape(24, 4, 3, 4)
    return Speculation(prompt, 500, shape, Proactive.MULTI, Noise(3, temperature), 264)


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_never_drifts_and_lines_say_what_they_spell(
    drafting: Callable[[str], tuple[ForeignDrafter, Translation]],
    engines: tuple[Engine, Engine],
    name: str,
) -> None:
    rng, own, checked = random.Random(len(name)), begun(0.0), 0
    drafter, translation = drafting(name)
    # a word that the target spells letter by letter, and the draft anew with each of them
    letters = [BYTES.index(letter) for letter in "Ġabcdeeabcd"]
    for turn in range(16):
        verdict = random_verdict(rng, own) if turn % 4 == 0 else (0, letters[turn % len(letters)])
        own.commit(*verdict)
        for _ in range(rng.randint(1, 4)):
            if frontier := own.frontier(32):
                drafter.run([Pass(own, frontier)])
        own.send(32)
        for _ in range(rng.randint(0, 3)):
            if frontier := own.frontier_ahead():
                drafter.run([Pass(own, frontier)])
        shadow = drafter._shadows[id(own)]
        if shadow._read < len(own.context):
            continue  # what was foreseen was sent as it was
        spelled = b"".join(map(translation.spelled, shadow.context))
        last = [token for token in own.context[-3:] if token not in BYTE_PAIRS.control]
        said = b"".join(BYTE_PAIRS.spelled[token] for token in last[-1:])
        # the model has no rows for the letters of these pieces, and reads on without them
        assert spelled.endswith(said) or name == "pieces"
        for path, below in from_scratch(engines[1], shadow, translation).items():
            assert children(shadow)[path] == pytest.approx(below, abs=1e-4)
        check_said(own, shadow, translation)
        checked += len(own.sent) > 0
    drafter.finish(own)
    assert not drafter._shadows
    assert checked > 4, "nothing was drafted: no test"


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_both_have_the_noise_that_the_target_draws_with(
    drafting: Callable[[str], tuple[ForeignDrafter, Translation]],
    engines: tuple[Engine, Engine],
    name: str,
) -> None:
    drafter, translation = drafting(name)
    for bonus in (3, 90, 258):
        own = begun(1.0)
        own.commit(0, bonus)
        for _ in range(3):
            drafter.run([Pass(own, own.frontier(32))])
        shadow = drafter._shadows[id(own)]
        for path, below in from_scratch(engines[1], shadow, translation).items():
            assert children(shadow)[path] == pytest.approx(below, abs=1e-4)
        check_said(own, shadow, translation)
        drafter.finish(own)
