"""The oracle of the HTTP tests: plain decoding by the library, without drafts and without HTTP."""

import asyncio

from runtime.api.of_edge import EdgeBackend


def question(text: str = "Why?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def plain(edge: EdgeBackend, prompt: object, **options: object) -> str:
    async def ask() -> str:
        return await edge.edge.generate(prompt, max_budget=0, **options).text

    return asyncio.run(ask())
