"""The replay of lookups writes the text that is known, and no faster than the text allows."""

from random import Random

import pytest

from bench.lookup_replay import ACCELERATORS, RTTS_S, Text, replay

CPU = ACCELERATORS["SmolLM2, one core, Q5_1"]


def copied(rng: Random) -> Text:
    """The answer says half of the prompt again."""
    prompt = [rng.randrange(40_000) for _ in range(120)]
    return Text("copied", prompt, prompt[20:100])


def unheard(rng: Random) -> Text:
    """No token comes twice."""
    tokens = rng.sample(range(40_000), 200)
    return Text("unheard", tokens[:120], tokens[120:])


@pytest.mark.parametrize("offers", [True, False])
@pytest.mark.parametrize("rtt_s", RTTS_S)
def test_what_is_copied_comes_faster_and_what_is_new_hardly_slower(
    rtt_s: float, offers: bool
) -> None:
    rng = Random(3)
    texts = [copied(rng), unheard(rng)]
    counts = replay(texts, CPU, rtt_s, fresh=True, offers=offers)
    assert counts["unheard"].accepted == 0
    assert counts["unheard"].speed > (0.97 if offers else 0.95)
    if offers or rtt_s < CPU.step_s(1):
        assert counts["copied"].speed > 1.3
        assert 20 < counts["copied"].accepted < len(texts[0].answer)


def test_who_has_answered_once_knows_the_answer() -> None:
    text = unheard(Random(5))
    counts = replay([text, text], CPU, 0.0006, fresh=False, offers=True)
    assert counts["unheard"].accepted > len(text.answer) / 2
