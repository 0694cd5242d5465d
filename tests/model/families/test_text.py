"""Text through server and edge equals plain decoding, for models that transformers' modules run."""

import asyncio
from dataclasses import replace

import pytest

from tests.conftest import byte_tokenizer
from tests.model.families.small import FAMILIES, save
from tests.server.in_loop import serving
from tests.test_lossless import SAMPLINGS, Pair, all_rounds, drafting

# windows and soft caps, sinks and experts, unequal widths, partly turned heads
NAMES = ("gemma-2", "gpt-oss", "deepseek-v3", "phi-4-mini")
TOKENS = 16


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", NAMES)
def test_text_is_that_of_plain_decoding(name, tmp_path):
    """Target and draft are one model: greedy, sampled and uncoupled texts, all at once."""
    save(FAMILIES[name], tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    pair = Pair(str(tmp_path), str(tmp_path), kv_tokens=128)
    prompt = pair.tokenizer.encode("A prompt longer than a window.")
    samplings = [replace(SAMPLINGS[each], max_tokens=TOKENS) for each in ("greedy", "T1", "T1.5")]
    expected = [pair.plain_text(prompt, sampling) for sampling in samplings]

    async def answered():
        async with serving(tmp_path, pipeline=False) as server:
            jobs = [
                (pair.drafter(), prompt, sampling, drafting(budget, coupling))
                for sampling, budget, coupling in zip(
                    samplings, (16, 4, 8), (True, True, False), strict=True
                )
            ]
            return await all_rounds(f"127.0.0.1:{server.address[1]}", pair.hello, jobs)

    answers = asyncio.run(asyncio.wait_for(answered(), 60))
    assert [[t for round_ in answer for t in round_.tokens] for answer in answers] == expected
    assert len(answers[0]) < len(expected[0])  # or nothing was drafted that was right
