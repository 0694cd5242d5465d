"""Small random GGUF files over the keys and tensors that a loader may meet, alone and together.

A file is a base model with options applied to it. Those of ROPE, OTHERS and KINDS are read or
ignored by llama.cpp, and must be so by us; those of REFUSED we refuse, whatever llama.cpp does.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from tests.model.gguf_files import ARCHITECTURES, VOCAB, Case, Kind, Sizes, base


@dataclass(frozen=True)
class Option:
    """A change to a file. `refused`: a pattern of the sentence with which we refuse it."""

    name: str
    change: Callable[[Case], object] = lambda case: None
    architectures: Sequence[str] = ARCHITECTURES
    sizes: dict[str, int] = field(default_factory=dict)
    refused: str = ""


def fields(**values: Any) -> Callable[[Case], object]:
    """Fields by name, __ for a dot."""
    named = {key.replace("__", "."): value for key, value in values.items()}
    return lambda case: case.fields.update(named)


def without(*keys: str) -> Callable[[Case], object]:
    def change(case: Case) -> None:
        for key in keys:
            case.fields.pop(key, None)
            case.tensors.pop(key, None)

    return change


def kinds_of(kind: Kind, *parts: str) -> Callable[[Case], object]:
    """The tensors whose names hold one of the parts are stored as `kind`."""

    def change(case: Case) -> None:
        names = [name for name in case.tensors if any(part in name for part in parts)]
        case.kinds.update(dict.fromkeys(names, kind))

    return change


def qkv_biases(case: Case) -> None:
    sizes = case.sizes
    for part, heads in ("q", sizes.n_heads), ("k", sizes.n_kv_heads), ("v", sizes.n_kv_heads):
        case.add_biases(f"attn_{part}", heads * sizes.head_dim)


def output_biases(case: Case) -> None:
    case.add_biases("attn_output", case.sizes.hidden_size)


def mlp_biases(case: Case) -> None:
    for part, size in (
        ("gate", case.sizes.mlp),
        ("up", case.sizes.mlp),
        ("down", case.sizes.hidden_size),
    ):
        case.add_biases(f"ffn_{part}", size)


def divisors(case: Case) -> None:
    half = case.sizes.head_dim // 2
    case.tensors["rope_freqs.weight"] = np.exp(abs(case.normal(half))).astype(np.float32)


def fused_qkv(case: Case) -> None:
    for layer in case.layers("attn_"):
        parts = [case.tensors.pop(f"{layer}{part}.weight") for part in "qkv"]
        case.tensors[f"{layer}qkv.weight"] = np.concatenate(parts)


def two_dimensions(case: Case) -> None:
    case.tensors["output_norm.weight"] = case.tensors["output_norm.weight"][None]


def lists(case: Case) -> None:
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        value = case.fields.get(key)
        if isinstance(value, int):
            case.fields[key] = [value] * case.sizes.n_layers


def tensor(name: str, *shape: int) -> Callable[[Case], object]:
    return lambda case: case.tensors.update({name: case.normal(*shape)})


def biases(part: str, size: str) -> Callable[[Case], object]:
    return lambda case: case.add_biases(part, getattr(case.sizes, size))


def patched(change: Callable[[bytes], bytes]) -> Callable[[Case], object]:
    def change_case(case: Case) -> None:
        case.patch = change

    return change_case


def called(architecture: str) -> Callable[[Case], object]:
    return lambda case: setattr(case, "architecture", architecture)


def both(*changes: Callable[[Case], object]) -> Callable[[Case], object]:
    return lambda case: [change(case) for change in changes]


YARN = fields(rope__scaling__type="yarn", rope__scaling__factor=4.0)
WEIGHTS = tuple(
    f"{part}.weight"
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
)
QUANTISED = """
    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 MXFP4 NVFP4
    IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS
"""
# heads are wide so that a row of the embedding is a whole block of each
WIDE = {"n_heads": 2, "head_dim": 128, "hidden_size": 256}

ROPE = [
    Option("theta", fields(rope__freq_base=500.0)),
    Option("no theta", without("rope.freq_base")),
    Option("scale_linear", fields(rope__scale_linear=4.0)),
    Option("factor without a type", fields(rope__scaling__factor=3.0)),
    Option("factor 0", fields(rope__scaling__factor=0.0)),
    Option("type none", fields(rope__scaling__type="none")),
    Option("type linear", fields(rope__scaling__type="linear")),
    Option("type yarn", fields(rope__scaling__type="yarn")),
    Option("yarn", both(YARN, fields(rope__scaling__original_context_length=16))),
    Option("yarn without original", YARN),
    Option("yarn backwards", both(YARN, fields(rope__scaling__factor=0.5))),
    Option("original context", fields(rope__scaling__original_context_length=24)),
    Option("original context 0", fields(rope__scaling__original_context_length=0)),
    Option("attn_factor", fields(rope__scaling__attn_factor=1.5)),
    Option(
        "yarn_*",
        fields(
            rope__scaling__yarn_ext_factor=0.5,
            rope__scaling__yarn_attn_factor=2.0,
            rope__scaling__yarn_beta_fast=8.0,
            rope__scaling__yarn_beta_slow=2.0,
            rope__scaling__yarn_log_multiplier=0.1,
        ),
    ),
    Option("finetuned", fields(rope__scaling__finetuned=True, rope__scaling__alpha=2.0)),
    Option("divisors", divisors, architectures=["llama"]),
    Option(
        "dimension_count",
        lambda case: case.fields.update({"rope.dimension_count": case.sizes.head_dim}),
    ),
]
OTHERS = [
    Option("nothing"),
    Option("sliding window", fields(attention__sliding_window=4)),
    Option("sliding window 0", fields(attention__sliding_window=0)),
    Option(
        "granite's scales",
        fields(attention__scale=0.1, logit_scale=2.0, embedding_scale=3.0, residual_scale=0.5),
    ),
    Option("caps", fields(attn_logit_softcapping=5.0, final_logit_softcapping=3.0, swin_norm=True)),
    Option("clamp_kqv", fields(attention__clamp_kqv=0.1, attention__max_alibi_bias=8.0)),
    Option("layer norm epsilon", fields(attention__layer_norm_epsilon=0.5)),
    Option("rms epsilon", fields(attention__layer_norm_rms_epsilon=0.1)),
    Option("causal", fields(attention__causal=True)),
    Option("no experts", fields(expert_count=0, expert_used_count=0)),
    Option("no nextn layers", fields(nextn_predict_layers=0)),
    Option(
        "default sizes",
        without("attention.key_length", "attention.value_length"),
        sizes={"head_dim": 16},
    ),
    Option("lists", lists),
    Option("one layer", sizes={"n_layers": 1}),
    Option("three layers", sizes={"n_layers": 3}),
    Option("one kv head", sizes={"n_kv_heads": 1}),
    Option(
        "no kv heads",
        without("attention.head_count_kv"),
        sizes={"n_heads": 2, "n_kv_heads": 2, "hidden_size": 32},
    ),
    # llama.cpp lets a qwen2's queries be as wide as its embedding only
    Option("wide heads", sizes={"head_dim": 24}, architectures=["llama", "qwen3"]),
    Option("odd mlp", sizes={"mlp": 37}),
    Option("biases", qkv_biases),
    Option("o bias", output_biases, ["llama"]),
    Option("mlp biases", mlp_biases, ["llama"]),
    Option("tied", without("output.weight")),
    Option("alignment 64", fields(**{".general__alignment": 64})),
    Option("alignment 128", fields(**{".general__alignment": 128})),
    Option("version 2", patched(lambda content: content[:4] + b"\2" + content[5:])),
    Option(
        "other fields", fields(**{".general__file_type": 7, ".general__tags": ["a"], "x__y": -1.5})
    ),
    Option("few parts", lambda case: setattr(case, "split_tensors", 7)),
    Option("many parts", lambda case: setattr(case, "split_tensors", 1)),
]
KINDS = [
    Option("F16 weights", kinds_of(Kind.F16, *WEIGHTS)),
    Option("BF16 weights", kinds_of(Kind.BF16, *WEIGHTS)),
    Option("F16 embedding", kinds_of(Kind.F16, "token_embd")),
    Option("BF16 embedding", kinds_of(Kind.BF16, "token_embd")),
    *(
        Option(f"{name} embedding", kinds_of(Kind[name], "token_embd"), ["llama"], sizes=WIDE)
        for name in QUANTISED.split()
    ),
    Option("Q8_0 weights", kinds_of(Kind.Q8_0, *WEIGHTS), sizes={**WIDE, "mlp": 96}),
]

NO_PART = "not part of this model"
REFUSED = [
    Option("part rotary", fields(rope__dimension_count=8), refused="rope.dimension_count is 8"),
    Option(
        "other values", fields(attention__value_length=8), refused="attention.value_length is 8"
    ),
    Option(
        "value_length by default",
        without("attention.value_length"),
        sizes={"head_dim": 24},
        refused="attention.value_length is 16",
    ),
    Option("not causal", fields(attention__causal=False), refused="attention.causal is False"),
    Option(
        "experts",
        fields(expert_count=4, expert_used_count=2),
        ("qwen2", "qwen3"),
        refused="expert_count is 4",
    ),
    Option("nextn layers", fields(nextn_predict_layers=1), refused="nextn_predict_layers is 1"),
    Option("longrope", fields(rope__scaling__type="longrope"), refused="scaling 'longrope' is not"),
    Option("dynamic", fields(rope__scaling__type="dynamic"), refused="scaling 'dynamic' is not"),
    Option("factor below 0", fields(rope__scaling__factor=-2.0), refused="factor is -2.0"),
    Option("attn_factor 0", fields(rope__scaling__attn_factor=0.0), refused="attn_factor is 0.0"),
    Option("theta 1", fields(rope__freq_base=1.0), refused="rope_theta is 1.0"),
    Option("epsilon 0", fields(attention__layer_norm_rms_epsilon=0.0), refused="rms_norm_eps is 0"),
    Option(
        "no epsilon", without("attention.layer_norm_rms_epsilon"), refused="rms_epsilon is None"
    ),
    Option("context 0", fields(context_length=0), refused="context_length is 0"),
    Option("no context", without("context_length"), refused="context_length is None"),
    Option("no heads", without("attention.head_count"), refused="head_count is None"),
    Option("number as text", fields(block_count="2"), refused="block_count is '2'"),
    Option("number as truth", fields(block_count=True), refused="block_count is True"),
    Option("kv heads differ", fields(attention__head_count_kv=[2, 1]), refused="a list of 2"),
    Option("short list", fields(attention__head_count_kv=[2]), refused="a list of 1"),
    Option("3 kv heads", sizes={"n_heads": 4, "n_kv_heads": 3}, refused="cannot be shared by 3"),
    Option("odd heads", sizes={"head_dim": 15, "hidden_size": 60}, refused="head_dim is 15"),
    Option("o bias", output_biases, ("qwen2", "qwen3"), refused=NO_PART),
    Option("mlp biases", mlp_biases, ("qwen2", "qwen3"), refused=NO_PART),
    Option("up bias alone", biases("ffn_up", "mlp"), refused=NO_PART),
    Option("down bias alone", biases("ffn_down", "hidden_size"), ("llama",), refused="missing"),
    Option("norm bias", biases("attn_norm", "hidden_size"), refused=NO_PART),
    Option("output bias", tensor("output.bias", VOCAB), refused=NO_PART),
    Option("q bias alone", tensor("blk.0.attn_q.bias", 64), refused="k_proj.bias is missing"),
    Option("v bias alone", tensor("blk.0.attn_v.bias", 32), refused=NO_PART),
    Option("bias in one layer", both(qkv_biases, without("blk.1.attn_q.bias")), refused="missing"),
    Option("scale tensor", tensor("blk.0.attn_q.scale", 1), refused=NO_PART),
    Option("fused qkv", fused_qkv, refused="blk.0.attn_qkv.weight is " + NO_PART),
    Option("extra tensor", tensor("blk.0.attn_rot_embd.weight", 8), refused=NO_PART),
    Option("another family's name", tensor("model.norm.weight", 64), refused=NO_PART),
    Option("inv_freq", tensor("blk.0.rotary_emb.inv_freq", 8), refused=NO_PART),
    Option("extra layer", tensor("blk.2.attn_norm.weight", 64), refused=NO_PART),
    Option("divisors of a layer", tensor("blk.0.rope_freqs.weight", 8), refused=NO_PART),
    Option(
        "norms of heads",
        tensor("blk.0.attn_q_norm.weight", 16),
        ("llama", "qwen2"),
        refused=NO_PART,
    ),
    Option("short divisors", tensor("rope_freqs.weight", 4), ("llama",), refused="has shape"),
    Option(
        "divisors below 0",
        lambda case: case.tensors.update({"rope_freqs.weight": np.full(8, -1, np.float32)}),
        ("llama",),
        refused="must hold numbers above 0",
    ),
    Option("divisors elsewhere", divisors, architectures=["qwen2", "qwen3"], refused=NO_PART),
    Option("classifier", tensor("cls.output.weight", 2, 64), refused=NO_PART),
    Option("norm of two dimensions", two_dimensions, refused="has shape"),
    Option("missing tensor", without("blk.1.ffn_up.weight"), refused="is missing"),
    Option("missing embedding", without("token_embd.weight"), refused="token_embd.weight is"),
    Option("alignment 48", fields(**{".general__alignment": 48}), refused="alignment is 48"),
    Option(
        "version 1", patched(lambda content: content[:4] + b"\1" + content[5:]), refused="version 1"
    ),
    Option(
        "version 4", patched(lambda content: content[:4] + b"\4" + content[5:]), refused="version 4"
    ),
    Option(
        "big-endian",
        patched(lambda content: content[:4] + b"\0\0\0\3" + content[8:]),
        refused="big-endian",
    ),
    Option(
        "tensor twice",
        patched(lambda content: content.replace(b"blk.1.attn_k.w", b"blk.1.attn_v.w")),
        refused="two tensors have the same name",
    ),
    Option(
        "field twice",
        patched(lambda content: content.replace(b"rope.freq_base", b"context_length")),
        refused="is there twice",
    ),
    *(
        Option(name, called(name), refused=f"architecture {name!r} is not supported")
        for name in ("mistral3", "qwen2vl", "qwen3vl", "mistral", "granite", "llama-embed")
    ),
]
SINGLES = [
    (architecture, (option,))
    for option in ROPE + OTHERS + KINDS + REFUSED
    for architecture in option.architectures
]


def pairs(options: Sequence[Option]) -> Iterator[tuple[str, Sequence[Option]]]:
    """All of them, the architectures taking turns."""
    for index, pair in enumerate(combinations(options, 2)):
        fitting = [name for name in ARCHITECTURES if all(name in o.architectures for o in pair)]
        yield fitting[index % len(fitting)], pair


SYSTEMATIC = [*SINGLES, *pairs(ROPE)]


def chosen(seed: int) -> tuple[str, Sequence[Option]]:
    """Every option alone, every pair of ROPE, and from then on a few at random."""
    if seed < len(SYSTEMATIC):
        return SYSTEMATIC[seed]
    random = np.random.default_rng(seed)
    architecture = str(random.choice(ARCHITECTURES))
    drawn = [
        options[index]
        for options, count in ((ROPE, 4), (OTHERS, 4), (KINDS, 2))
        for index in random.permutation(len(options))[: random.integers(count)]
    ]
    fitting: list[Option] = []
    for option in drawn:
        apart = all(option.sizes.keys().isdisjoint(other.sizes) for other in fitting)
        if apart and architecture in option.architectures:
            fitting.append(option)
    return architecture, fitting


def case(seed: int) -> tuple[Case, Sequence[Option]]:
    architecture, options = chosen(seed)
    sizes = replace(Sizes(), **{key: n for option in options for key, n in option.sizes.items()})
    made = base(architecture, sizes, np.random.default_rng(seed))
    for option in options:
        option.change(made)
    return made, options
