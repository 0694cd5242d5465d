"""Random blocks of every quantised format, as a file has them."""

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

from specedge_kernels.quantized import FORMS

KINDS = list(FORMS)
NAMES = [form.name for form in FORMS.values()]
GGML = [kind for kind in KINDS if not FORMS[kind].float8]  # whose codes are integers


def random_stored(kind, outputs, inputs, seed=0, largest=0.05):
    """Random codes [outputs, bytes] with scales, and minima, of up to `largest`, some negative."""
    rng = np.random.default_rng(seed)
    form = FORMS[kind]
    groups = rng.integers(
        0, 256, (outputs, inputs // form.inputs, form.stored_bytes), dtype=np.uint8
    )
    for i in range(form.halves):
        numbers = rng.uniform(-largest, largest, groups.shape[:2]).astype(np.float16)
        set_half(groups, kind, i, numbers)
    if form.float8:
        groups[..., 4:][groups[..., 4:] & 0x7F == 0x7F] = 0xFE  # -448 in place of what is no number
        scales = rng.uniform(-largest, largest, (*groups.shape[:2], 1)).astype(np.float32)
        groups[..., :4] = scales.view(np.uint8)
    elif not form.halves:  # a power of two
        groups[..., 0] = rng.integers(110, 125, groups.shape[:2])
    return torch.from_numpy(groups.reshape(outputs, groups.shape[1] * groups.shape[2]))


def set_half(groups, kind, which, numbers):
    """The scale (0) or the minimum (1) of groups [..., bytes]."""
    start = 208 if FORMS[kind].name == "Q6_K" else 2 * which
    groups[..., start : start + 2] = np.asarray(numbers, np.float16)[..., None].view(np.uint8)


def dequantized(stored, kind):
    """gguf's own values, or of float8 torch's."""
    form = FORMS[kind]
    if form.float8:
        groups = stored.view(len(stored), -1, form.stored_bytes)
        scales = torch.from_numpy(groups[..., :4].numpy().copy().view(np.float32))
        codes = groups[..., 4:].contiguous().view(torch.float8_e4m3fn)
        return (codes.double() * scales.double()).float().flatten(1)
    with np.errstate(all="ignore"):
        return torch.from_numpy(quants.dequantize(stored.numpy(), GGMLQuantizationType(kind)))
