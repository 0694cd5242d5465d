"""The type that models are run and trained in."""

import torch

# Without instructions for bfloat16 a product takes four times as long in it as in float32.
_HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
COMPUTE = torch.bfloat16 if _HAS_BF16 else torch.float32
