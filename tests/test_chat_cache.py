"""A second turn finds the first one in the server's cache, answer included, without being asked."""

from pathlib import Path

import pytest

from runtime.config import EdgeConfig, ServerConfig
from runtime.edge.client import Edge
from runtime.edge.draft.drafter import common_prefix

PAGE = ServerConfig.page_size


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3, "presence_penalty": 0.5}])
@pytest.mark.parametrize("max_budget", [0, 8])
def test_every_turn_reads_only_what_is_new(
    tiny_pair: tuple[Path, Path], tiny_server: str, options: dict, max_budget: int
) -> None:
    """All full pages of what two prompts have in common, and of the answer between them."""
    shape = {"max_tokens": 45, "max_budget": max_budget}
    config = EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), **shape, **options)
    before, messages = [], [{"role": "system", "content": f"brief {max_budget} {options}"}]
    with Edge(config) as edge:
        for question in ("What is it?", "And why is that so?", "Who says so?"):
            messages.append({"role": "user", "content": question})
            prompt = edge.encode(messages)
            answer = edge.generate(messages)
            messages.append({"role": "assistant", "content": answer.text})
            common = common_prefix(prompt, before)
            stats = answer.statistics
            assert stats.prompt_tokens == stats.read_tokens == len(prompt)
            if before:
                # the last token's own place is filled by the step that would have come next
                known = min(common, len(before) - 1, len(prompt) - 1)
                assert stats.cached_tokens == known // PAGE * PAGE
                # a random model's sampled bytes are no text, and are not the same when read again
                assert options or common > len(before) - 45, "the answer is not found"
            before = prompt + answer.tokens
