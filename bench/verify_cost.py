"""What verifying 1 to 64 nodes costs the server, against the floor of this machine.

The floor of a step is the larger of two times: its bytes (weights once, KV of every request once)
at the copy bandwidth, and its arithmetic at the rate of the fastest matrix product, both measured
here in the same run. On a CPU the two halves of a step are also timed apart, in turns: its matrix
products, and a step whose products have no inputs, after the products have emptied the caches. A
row is printed only if the root's logits are those of a step that verifies the root alone; on a CPU,
to the last bit.

    python -m bench.verify_cost [--model NAME] [--weights bfloat16] [--json]
"""

import argparse
import copy
import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.harness import Timing, measure, measure_in_turns, option_parser, report
from runtime.bench.attempt import attempt
from runtime.config import WEIGHTS
from runtime.model.engine import Engine, TreeRequest
from runtime.model.experts import MixtureOfExperts
from runtime.model.open import open_engine
from runtime.model.transformer import GatedMlp, Linear, Transformer
from specedge_kernels import (
    QuantizedWeight,
    _cpu,
    linear,
    pack_linear,
    pack_quantized,
    quantized_linear,
)
from specedge_kernels.cpu import linear_of, quantized_of
from specedge_kernels.quantized import FORMS

COLUMNS = ("context", "requests", "nodes", "step", "of one node", "floor", "share of floor")
SPLIT_COLUMNS = ("products", "rest", "share of products")
SAMPLES, SAMPLE_S = 5, 0.1
TURNS = 25


def main() -> None:
    options = parse_options()
    largest = options.requests[-1] * (options.contexts[-1] + options.nodes[-1] + 16)
    engine = open_engine(options.model, options.weights, options.device, lambda model: largest, 16)
    bandwidth, rate = copy_bandwidth(engine.model.device), product_rate(engine)
    rows: list[tuple[object, ...]] = []
    numbers: dict[str, float] = {"copy_gbytes_per_s": bandwidth / 1e9, "gflops": rate / 1e9}
    for context in options.contexts:
        for n_requests in options.requests:
            prefill(engine, context, n_requests)
            single = step_time(engine, context, n_requests, 1)
            for nodes in options.nodes:
                took_s = step_time(engine, context, n_requests, nodes).median_s
                floor_s = floor(engine, context, n_requests, nodes, bandwidth, rate)
                row: tuple[object, ...] = (
                    *(context, n_requests, nodes, f"{took_s * 1e3:.1f} ms"),
                    *(f"{took_s / single.median_s:.2f}x", f"{floor_s * 1e3:.1f} ms"),
                    f"{floor_s / took_s:.0%}",
                )
                name = f"context_{context}_requests_{n_requests}_nodes_{nodes}"
                numbers[f"{name}_ms"] = round(took_s * 1e3, 3)
                numbers[f"{name}_share_of_floor"] = round(floor_s / took_s, 3)
                if can_split(engine.model):
                    products, rest = split(engine, context, n_requests, nodes)
                    products_ms, rest_ms = products.median_s * 1e3, rest.median_s * 1e3
                    share = products_ms / (products_ms + rest_ms)
                    row += f"{products_ms:.1f} ms", f"{rest_ms:.2f} ms", f"{share:.1%}"
                    numbers[f"{name}_rest_ms"] = round(rest_ms, 3)
                    numbers[f"{name}_products_share"] = round(share, 4)
                rows.append(row)
    title = (
        f"verification step of {options.model}, {options.weights} on {engine.model.device}, "
        f"{torch.get_num_threads()} threads; copy {bandwidth / 1e9:.1f} GB/s, "
        f"products {rate / 1e9:.0f} GFLOP/s"
    )
    columns = COLUMNS + SPLIT_COLUMNS if can_split(engine.model) else COLUMNS
    report(title, columns, rows, numbers, options.json)


def requests(
    engine: Engine, context: int, n_requests: int, nodes: int, cached: int
) -> list[TreeRequest]:
    """Binary trees under a root, one for each request, each in its own pages."""
    per_request = engine.kv.n_pages // n_requests
    return [
        TreeRequest(
            tokens=[(17 * r + n) % 1000 for n in range(nodes)],
            parents=[-1, *((n - 1) // 2 for n in range(1, nodes))],
            prefix_len=cached,
            pages=range(r * per_request, (r + 1) * per_request),
            logit_rows=range(nodes),
        )
        for r in range(n_requests)
    ]


def prefill(engine: Engine, context: int, n_requests: int) -> None:
    for request in requests(engine, context, n_requests, 1, 0):
        tokens = torch.randint(1000, (context,), generator=torch.manual_seed(0)).tolist()
        chain = range(-1, context - 1)
        engine.forward([TreeRequest(tokens, chain, 0, request.pages, ())])


def step_time(engine: Engine, context: int, n_requests: int, nodes: int) -> Timing:
    """Time of one step, after checking that the roots do not notice the nodes below them."""
    batch = requests(engine, context, n_requests, nodes, context)
    roots = engine.forward(batch)[::nodes]
    alone = torch.cat(
        [engine.forward([root]) for root in requests(engine, context, n_requests, 1, context)]
    )
    tolerance = 0.0 if engine.model.device.type == "cpu" else 2e-2
    difference = float((roots - alone).abs().max() / alone.abs().max())
    assert difference <= tolerance, f"a root's logits change by {difference:.1e} inside a tree"
    return measure(
        lambda: engine.forward(batch), SAMPLES, SAMPLE_S, synchronize(engine.model.device)
    )


def split(engine: Engine, context: int, n_requests: int, nodes: int) -> list[Timing]:
    """Times of a step's matrix products, and of all the rest of it."""
    batch, rest = requests(engine, context, n_requests, nodes, context), without_products(engine)
    rows, model = n_requests * nodes, engine.model
    work = [
        (
            native(part),
            torch.ones(rows, part.as_packed().in_features),
            torch.empty(rows, part.out_features),
        )
        for part in products_of(model)
    ]

    def products() -> None:
        for weights, x, out in work:
            _cpu.multiply(weights, x.data_ptr(), rows, out.data_ptr())

    return measure_in_turns([products, lambda: rest.forward(batch)], TURNS)


def products_of(model: Transformer) -> list[Linear]:
    """Of every row, whatever it is: all but those of experts."""
    parts = [part for layer in model.layers for part in (layer.qkv, layer.output)]
    for layer in model.layers:
        mlp = layer.mlp
        if isinstance(mlp, MixtureOfExperts):
            parts.append(mlp.router.linear)
            mlp = mlp.shared and mlp.shared.mlp
        if isinstance(mlp, GatedMlp):
            parts += mlp.gate_up, mlp.down
    return [*parts, model.head]


def mixtures_of(model: Transformer) -> list[MixtureOfExperts]:
    return [layer.mlp for layer in model.layers if isinstance(layer.mlp, MixtureOfExperts)]


def native(part: Linear) -> _cpu.Linear:
    if isinstance(part.weight, QuantizedWeight):
        return quantized_of(part.weight, part.exact)
    return linear_of(part.weight, part.out_features)


def n_bytes_of(part: Linear) -> int:
    return (part.weight.packed if isinstance(part.weight, QuantizedWeight) else part.weight).nbytes


def can_split(model: Transformer) -> bool:
    """Whether it runs in one call whose products can be left out."""
    return model.decoder is not None and not mixtures_of(model)


def without_products(engine: Engine) -> Engine:
    """The same engine with products of no inputs, which give zeros at once."""
    model = copy.copy(engine.model)
    config, decoder = model.config, copy.copy(model.decoder)
    embedding = torch.zeros(config.vocab_size, config.hidden_size)

    def empty(part: Linear) -> _cpu.Linear:
        return _cpu.Linear(0, _cpu.Dtype.float32, 0, part.out_features, 0)

    hollow = _cpu.Decoder(
        *(config.hidden_size, config.n_heads, config.n_kv_heads, config.head_dim),
        *(config.rms_norm_eps, config.head_dim**-0.5),
        *(model.cos.data_ptr(), model.sin.data_ptr(), len(model.cos)),
        *(embedding.data_ptr(), _cpu.Dtype.float32, config.vocab_size),
        *(model.norm.data_ptr(), empty(model.head)),
    )
    for index, layer in enumerate(model.layers):
        hollow.add_layer(
            layer.attention_norm.data_ptr(),
            empty(layer.qkv),
            0 if layer.qk_norm is None else layer.qk_norm.data_ptr(),
            empty(layer.output),
            layer.mlp_norm.data_ptr(),
            empty(layer.mlp.gate_up),
            empty(layer.mlp.down),
            config.intermediate_size,
            config.window(index),
            None,
        )
    decoder._decoder, decoder._tensors = hollow, (embedding, decoder._tensors)
    model.decoder = decoder
    return Engine(model, engine.kv)


def floor(
    engine: Engine, context: int, n_requests: int, nodes: int, bandwidth: float, rate: float
) -> float:
    """Seconds that the step takes at least."""
    config, kv, products = engine.model.config, engine.kv, products_of(engine.model)
    rows, token_bytes = n_requests * nodes, kv.bytes_per_page / kv.page_size
    n_bytes = sum(map(n_bytes_of, products)) + n_requests * (context + nodes) * token_bytes
    weights = sum(part.out_features * part.as_packed().in_features for part in products)
    for mixture in mixtures_of(engine.model):
        router, each = mixture.router, mixture.experts.bytes_of_one
        # as many as an even choice of each row wakes
        n_experts = router.linear.out_features
        n_bytes += each * n_experts * (1 - (1 - router.k / n_experts) ** rows)
        weights += router.k * 3 * config.hidden_size * mixture.experts.down.in_features
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * (context + nodes)
    flops = rows * (2 * weights + attention)
    return max(n_bytes / bandwidth, flops / rate)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written bytes together."""
    source = torch.ones(64 * 2**20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    took = measure(lambda: target.copy_(source), SAMPLES, SAMPLE_S, synchronize(device))
    return 2 * source.numel() * 4 / took.median_s


def product_rate(engine: Engine) -> float:
    """FLOP per second of the fastest large product at hand, torch's or ours."""
    device, dtype, head = engine.model.device, engine.model.dtype, engine.model.head
    x = torch.randn(1024, 1024, device=device)
    weight = torch.randn(1024, 1024, device=device, dtype=dtype)
    cast = x.to(dtype)
    ways = [lambda: torch.mm(cast, weight)]
    if device.type == "cpu":
        panels = pack_linear(weight)
        ways.append(lambda: linear(x, panels, 1024))
    if isinstance(head.weight, QuantizedWeight):
        kind = head.weight.kinds[0]
        stored = torch.zeros(1024, 1024 // FORMS[kind].inputs * FORMS[kind].stored_bytes)
        packed = pack_quantized(stored.byte(), kind)
        ways.append(lambda: quantized_linear(x, packed, exact=head.exact))
    best_s = min(measure(way, SAMPLES, SAMPLE_S, synchronize(device)).median_s for way in ways)
    return 2 * 1024**3 / best_s


def synchronize(device: torch.device):
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.verify_cost", __doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weights", default="stored", choices=WEIGHTS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(attempt("bench.verify_cost", main))
