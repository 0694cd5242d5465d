"""Text that the target writes itself: questions from its own template, then its answers.

No outside text is used, so anyone with the model can make the same kind of data. Knows the token
ids of the template and transformers' `generate`, nothing of drafts.
"""

import gzip
import json
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from runtime.embedded.training.arithmetic import COMPUTE
from runtime.embedded.training.export import draft_config
from runtime.embedded.training.llama import read_gguf

# <|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
# \n<|im_start|>user\n
BEFORE_USER = (1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018,
               411, 407, 19712, 8182, 2, 198, 1, 4093, 198)  # fmt: skip
# \n<|im_start|>assistant\n
BEFORE_ANSWER = (198, 1, 520, 9531, 198)
END = 2
TEMPERATURES = (0.0, 0.7, 1.0)
_QUESTION_TOKENS, _ANSWER_TOKENS, _BATCH = 64, 160, 64
_DISTINCT_TOKENS = 12


def load_target(path: Path) -> LlamaForCausalLM:
    """The target as a transformers model."""
    shape, weights = read_gguf(path)
    config = LlamaConfig.from_dict(draft_config(shape, 0) | {"tie_word_embeddings": True})
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    # transformers wraps the types of these two away
    torch.nn.Module.to(model, COMPUTE)
    torch.nn.Module.eval(model)
    return model


def write_self_text(target: Path, out: Path, count: int, seed: int = 0) -> None:
    """Write `count` conversations as gzipped JSON lines of `prompt`, `answer`, `temperature`."""
    torch.manual_seed(seed)
    model, written = load_target(target), 0
    seen: set[tuple[int, ...]] = set()
    with gzip.open(out, "wt") as lines:
        for temperature in cycle(TEMPERATURES):
            if written == count:
                break
            questions = _new_questions(model, seen)[: count - written]
            for question, answer in zip(
                questions, _answers(model, questions, temperature), strict=True
            ):
                fields = {"prompt": question, "answer": answer, "temperature": temperature}
                lines.write(json.dumps(fields, separators=(",", ":")) + "\n")
            written += len(questions)
            print(f"{written}/{count} conversations", flush=True)


def _new_questions(model: LlamaForCausalLM, seen: set[tuple[int, ...]]) -> list[list[int]]:
    """Prompts whose question ended by itself and whose first tokens were not seen before."""
    start = torch.tensor([BEFORE_USER]).expand(_BATCH, -1)
    out = []
    for tokens in _continue(model, start, torch.ones_like(start), 1.0, _QUESTION_TOKENS):
        opening = tuple(tokens[:_DISTINCT_TOKENS])
        if tokens[-1] == END and opening not in seen:
            seen.add(opening)
            out.append([*BEFORE_USER, *tokens, *BEFORE_ANSWER])
    return out


def _answers(
    model: LlamaForCausalLM, prompts: list[list[int]], temperature: float
) -> list[list[int]]:
    if not prompts:
        return []
    longest = max(map(len, prompts))
    ids = torch.tensor([[END] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return _continue(model, ids, mask, temperature, _ANSWER_TOKENS)


@torch.inference_mode()
def _continue(
    model: LlamaForCausalLM, ids: Tensor, mask: Tensor, temperature: float, tokens: int
) -> list[list[int]]:
    """What the model writes after each row, up to and with END."""
    sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 0}
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        eos_token_id=END,
        pad_token_id=END,
        **(sampling if temperature else {"do_sample": False}),
    )
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]
