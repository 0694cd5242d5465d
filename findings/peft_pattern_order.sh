#!/usr/bin/env bash
# peft 0.21.2: an adapter whose alpha_pattern gives one module an alpha of its own, and the others of that
# name another one, can be another adapter once it is saved. Of the keys that match a module the first one
# in the dict counts, but adapter_config.json is written with its keys in alphabetical order, which puts
# "q_proj" before "vision.q_proj" (and a wildcard such as ".*_proj" before any name). The weights load
# without a warning and are scaled as the general key says.
#
# Seen (alpha / r of the special and of the other module, as trained and as loaded; are the outputs the same):
#   {'vision.q_proj': 32, 'q_proj': 8}: [8.0, 2.0] [2.0, 2.0] False
#   {'audio.q_proj': 32, 'q_proj': 8}: [8.0, 2.0] [8.0, 2.0] True
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q 'torch>=2.9'
"$pip" install -q peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import warnings
from collections import OrderedDict

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def projection():
    return torch.nn.Sequential(OrderedDict(q_proj=torch.nn.Linear(8, 8)))


def base(special):
    torch.manual_seed(0)
    parts = {special: projection(), "text": projection()}
    return torch.nn.Sequential(OrderedDict(parts))


def scales(model):
    return [part.q_proj.scaling["default"] for part in model.base_model.model]


warnings.simplefilter("error", UserWarning)
warnings.simplefilter("error", RuntimeWarning)
seen = {}
for special in ("vision", "audio"):
    pattern = {f"{special}.q_proj": 32, "q_proj": 8}
    config = LoraConfig(r=4, target_modules=["q_proj"], alpha_pattern=pattern, init_lora_weights=False)
    trained = get_peft_model(base(special), config).eval()
    trained.save_pretrained(special)
    loaded = PeftModel.from_pretrained(base(special), special).eval()
    same = torch.allclose(trained(torch.ones(1, 8)), loaded(torch.ones(1, 8)))
    seen[special] = scales(trained), scales(loaded), same
    print(f"{pattern}:", *seen[special])
kept, lost = [8.0, 2.0], [2.0, 2.0]
assert seen == {"vision": (kept, lost, False), "audio": (kept, kept, True)}, "it has changed"
PYTHON
