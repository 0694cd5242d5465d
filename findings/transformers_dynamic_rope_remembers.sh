#!/usr/bin/env bash
# transformers 5.24.0: a model whose rotary positions are scaled by "dynamic" (NTK) answers by what it was asked
# before. Its frequencies follow the longest text seen: they are made for it when it comes, kept in the module, and
# put back only by a text shorter than max_position_embeddings. A text of max_position_embeddings or more gets those
# of a longer one that was run earlier, in another call and for somebody else; a short one beside a long one in a
# batch gets the long one's. With "linear" (and "yarn", "llama3") scaling a text has one result. "longrope" has no
# memory, but looks at the longest text of the batch too.
#
# Seen (largest difference of the logits, of 20 tokens where 16 are the first context; and of 12 tokens):
#   linear: 20 tokens after 60: 0.00; after 5: 0.00; 12 beside 60: 0.00
#   dynamic: 20 tokens after 60: 6.53; after 5: 0.00; 12 beside 60: 6.51
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
from transformers import LlamaConfig, LlamaForCausalLM


def model_of(kind):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
        rope_parameters={"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0},
        initializer_range=0.5, pad_token_id=0, eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def beside(model, short, long):
    """The logits of the last token of a short text, padded on its left beside a long one."""
    pad = long.shape[1] - short.shape[1]
    mask = (torch.arange(long.shape[1]) >= torch.tensor([[pad], [0]])).long()
    tokens = torch.cat((torch.nn.functional.pad(short, (pad, 0)), long))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(tokens, attention_mask=mask, position_ids=positions).logits[0, -1]


def difference(some, other):
    return float((some - other).abs().max())


draws = torch.Generator().manual_seed(0)
text, long = (torch.randint(1, 64, (1, length), generator=draws) for length in (20, 60))
seen = {}
with torch.no_grad():
    for kind in ("linear", "dynamic"):
        model = model_of(kind)
        first = model(text).logits
        model(long)
        after_long = difference(first, model(text).logits)
        model(text[:, :5])
        after_short = difference(first, model(text).logits)
        alone = model_of(kind)(text[:, :12]).logits[0, -1]
        in_batch = difference(alone, beside(model_of(kind), text[:, :12], long))
        seen[kind] = after_long > 1, after_short > 1e-3, in_batch > 1
        print(
            f"{kind}: 20 tokens after 60: {after_long:.2f}; after 5: {after_short:.2f}; "
            f"12 beside 60: {in_batch:.2f}"
        )
assert seen == {"linear": (False, False, False), "dynamic": (True, False, True)}, "it has changed"
PYTHON
