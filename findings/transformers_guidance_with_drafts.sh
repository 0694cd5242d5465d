#!/usr/bin/env bash
# transformers 5.24.0: generate(guidance_scale=...) gives another text as soon as tokens are drafted, by
# prompt_lookup_num_tokens or by an assistant model, both of which change nothing but the speed of greedy decoding.
# Nothing is raised and nothing is warned of. The processor of classifier-free guidance keeps a text of its own, the
# one without the prompt, and at each call goes on there by the last token alone, whatever it was called for. With
# drafts it is called for several positions of a verification, of which some are refused, and by the assistant too:
# tokens are missing in its text, and others are there that no answer has.
#
# Seen (two small random models in float64; of eight prompts, at which of 24 tokens the answer first differs from
# guidance computed by hand, without a cache):
#   plain decoding: never
#   with 3 tokens looked up: [3, 6, None, 1, 4, 3, 4, None]
#   with an assistant model: [0, 5, 4, 0, 2, 3, 1, 0]
#   the same without guidance_scale, beside plain decoding: never, never
# Where exactly it differs is the machine's own; the check is that plain decoding never differs and drafts do.
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q 'torch>=2.9'
"$pip" install -q transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
TOKENS, SCALE = 24, 1.5


def random_model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval().double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(20)
    return model


def guided(model, prompt):
    text = prompt
    with torch.no_grad():
        for _ in range(TOKENS):
            told = model(text).logits[:, -1].log_softmax(-1)
            untold = model(text[:, prompt.shape[1] - 1 :]).logits[:, -1].log_softmax(-1)
            scores = untold + SCALE * (told - untold)
            text = torch.cat([text, scores.argmax(-1, keepdim=True)], 1)
    return text


def differs(a, b):
    """At which token, None if nowhere."""
    pairs = zip(a[0, 12:].tolist(), b[0, 12:].tolist(), strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), None)


target, assistant = random_model(1), random_model(2)
ways = {"plain": {}, "lookup": {"prompt_lookup_num_tokens": 3}, "assistant": {"assistant_model": assistant}}
seen = {way: [] for way in ways}
unguided = {way: [] for way in ways}
for seed in range(8):
    torch.manual_seed(seed)
    prompt = torch.randint(24, (1, 12))
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": TOKENS}
    by_hand, plain = guided(target, prompt), target.generate(prompt, **options)
    for way, drafts in ways.items():
        answer = target.generate(prompt, **options, guidance_scale=SCALE, **drafts)
        seen[way].append(differs(by_hand, answer))
        unguided[way].append(differs(plain, target.generate(prompt, **options, **drafts)))
print("plain decoding:", seen["plain"])
print("with 3 tokens looked up:", seen["lookup"])
print("with an assistant model:", seen["assistant"])
print("without guidance_scale:", unguided)
never = [None] * 8
assert seen["plain"] == never and all(places == never for places in unguided.values()), "it has changed"
assert seen["lookup"] != never and seen["assistant"] != never, "it has changed"
PYTHON
