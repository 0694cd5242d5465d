"""Write the embedded draft into a folder as a model of another vocabulary: what does that cost?

    python -m bench.foreign_draft FOLDER --merges 16000
    python -m bench.acceptance --draft FOLDER --prompts specbench.jsonl

It keeps the first so many merges of its byte pairs, so that it spells longer words in several
pieces, and gives all tokens other ids, by a fixed shuffle. Nothing is trained: the rows of what is
left are as they were. All merges leave the same pieces under other ids.
"""

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from runtime import embedded
from runtime.arguments import Parser
from runtime.embedded.training.export import EMBEDDING
from runtime.model.checkpoint import open_checkpoint
from runtime.model.gguf_config import Metadata
from runtime.model.locate import DRAFT, TARGET, locate
from specedge_kernels import StoredWeight, dequantize

HEAD = "lm_head.weight"


def main() -> int:
    parser = Parser(prog="python -m bench.foreign_draft", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--merges", type=int, default=16000, help="byte pairs that are merged")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    metadata = Metadata(locate(TARGET))
    tokens = metadata.get("tokenizer.ggml.tokens")
    merges = [tuple(line.split(" ")) for line in metadata.get("tokenizer.ggml.merges")]
    kinds = metadata.get("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    kept = pieces(tokens, special, merges[: options.merges])
    save_tokenizer(options.folder, kept, special, merges[: options.merges])
    old_ids = {token: index for index, token in enumerate(tokens)}
    save_model(options.folder, [old_ids[token] for token in [*kept, *special]])
    return 0


def pieces(tokens: list[str], special: list[str], merges: list[tuple[str, ...]]) -> list[str]:
    """What can still be made, in a shuffled order."""
    made = {"".join(pair) for pair in merges}
    kept = [t for t in tokens if t not in special and (len(t) == 1 or t in made)]
    random.Random(7).shuffle(kept)
    return kept


def save_tokenizer(
    folder: Path, kept: list[str], special: list[str], merges: list[tuple[str, ...]]
) -> None:
    backend = Backend(models.BPE({token: index for index, token in enumerate(kept)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(
        folder
    )


def save_model(folder: Path, old_ids: list[int]) -> None:
    """The draft with these rows, as floats."""
    checkpoint = open_checkpoint(DRAFT)
    tensors = {}
    for name in checkpoint.shapes:
        stored = checkpoint.stored(name)
        is_quantised = isinstance(stored, StoredWeight)
        tensors[name] = dequantize(stored.rows, stored.kind) if is_quantised else stored
    new_ids = {old: new for new, old in enumerate(old_ids)}
    head = tensors["head_ids"].tolist()
    rows = sorted((new_ids[old], row) for row, old in enumerate(head) if old in new_ids)
    tensors["head_ids"] = torch.tensor([new for new, _ in rows], dtype=torch.float32)
    tensors[HEAD] = tensors[HEAD][[row for _, row in rows]].contiguous()
    tensors[EMBEDDING] = tensors[EMBEDDING][old_ids].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    fields = json.loads(embedded.DRAFT_CONFIG.read_text())
    fields |= {"vocab_size": len(old_ids), "head_tokens": len(rows), "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
