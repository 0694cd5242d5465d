"""The table of docs/families.md: which families run, by which code, and what was tried.

    python -m tests.model.families.table

writes it anew from published.json, whose models test_families.py runs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.model.config import FAMILIES as OWN
from tests.model.families.small import FAMILIES, Family

PAGE = Path(__file__).parents[3] / "docs/families.md"
RUN = "<!-- python -m tests.model.families.table -->\n", "<!-- end of the families that run -->\n"
REFUSED = "<!-- refused -->\n", "<!-- end of those refused -->\n"
HEADER = """| family | configuration of | class | code | what is peculiar |
|---|---|---|---|---|
"""
SCALED = ("linear", "llama3", "yarn", "longrope")


def page() -> str:
    """The page with its tables as they ought to be."""
    text = PAGE.read_text()
    for (begin, end), table in ((RUN, run()), (REFUSED, refused())):
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    return text


def run() -> str:
    families = [family for family in FAMILIES.values() if family.refused is None]
    rows = (
        f"| {family.family} | {family.checkpoint} | `{family.config['architectures'][0]}` | "
        f"{'own' if family.model_type in OWN else 'transformers'} | {', '.join(tried(family))} |\n"
        for family in families
    )
    return HEADER + "".join(rows)


def refused() -> str:
    rows = (
        f"| {family.family} | `{family.config['architectures'][0]}` | {family.refused} |\n"
        for family in FAMILIES.values()
        if family.refused is not None
    )
    return "| family | class | why |\n|---|---|---|\n" + "".join(rows)


def tried(family: Family) -> Iterator[str]:
    """What is peculiar to the family, in words."""
    config: dict[str, Any] = family.config.get("text_config", family.config)
    kinds = set(config.get("layer_types", ()))
    if config.get("use_sliding_window", True) and _window(config) > 0:
        yield "windows in some layers" if _is_mixed(config, kinds) else "a window"
    if config["model_type"] == "gpt_oss":
        yield "attention sinks"
    if config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        yield "soft caps"
    if config.get("kv_lora_rank"):
        yield "keys and values of unequal widths"
    if config.get("global_head_dim"):
        yield "heads of other widths in full layers"
    if config.get("num_kv_shared_layers"):
        yield "layers that share keys and values"
    if any("expert" in name and value for name, value in config.items()):
        yield "experts"
    if scaling := _scaling(config):
        yield f"{scaling} positions beyond the first context"
    if "text_config" in family.config:
        yield "the text part of a model that sees"


def _window(config: dict[str, Any]) -> int:
    """Tokens of the window, 0 where a text never fills it."""
    window = config.get("sliding_window") or 0
    longest = config.get("max_position_embeddings", window + 1)
    return window if window < longest or "layer_types" in config else 0


def _is_mixed(config: dict[str, Any], kinds: set[str]) -> bool:
    types = ("gemma2", "gemma3_text")
    return len(kinds) > 1 or "sliding_window_pattern" in config or config["model_type"] in types


def _scaling(config: dict[str, Any]) -> str | None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type")
    return kind if kind in SCALED else None


if __name__ == "__main__":
    PAGE.write_text(page())
