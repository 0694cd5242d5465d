"""SpecEdge beside llama.cpp and transformers: the same files, text and threads, in turns.

Read a prompt, decode greedily, run steps of 2 to 16 rows that follow one text (what verifying a
draft takes), count memory beyond what imports take, and start. Every engine is a process of its own
and as it comes: SpecEdge chooses its instruction set (SPECEDGE_ISA forces a lower one), llama.cpp
is as its wheel was compiled (the report has what it says of itself); keys and values are float32
here and 16 bits there. Times of one thread are the processor's, not the clock's, so that other work
on the machine counts for less; start-up and servers are by the clock. Exit status 1 if any answer
was further off than the tolerance, or a text of ours with drafts was not our plain text.

    pip install -e '.[bench]'
    python -m bench.peers [--formats q4_0 q8_0 q4_k] [--json]
"""

import argparse
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

from bench.harness import option_parser, report
from bench.peers.figures import COLUMNS, OURS, Line, lines, report_of, served_lines
from bench.peers.in_turns import BEHIND, ROWS, TOLERANCE, measure
from bench.peers.models import CONTEXT_TOKENS
from runtime.model.locate import DRAFT, TARGET, locate
from runtime.terminal import run

TEXT = Path(__file__).parents[2] / "LICENSE"  # thousands of tokens that never change


def main() -> int:
    options = parse_options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rows, numbers, versions = [], {}, {}
    is_right = True
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files(options, Path(folder)):
            found, versions = of_file(path, options)
            more_rows, more = report_of(name or path.name, f"_{name}" if name else "", found)
            rows, numbers = [*rows, *more_rows], {**numbers, **more}
            is_right &= all(off <= TOLERANCE for line in found for off in line.off.values())
        if options.served:
            found = served(locate(options.model), Path(folder), options)
            more_rows, more = report_of("both servers", "", found)
            rows, numbers = [*rows, *more_rows], {**numbers, **more}
            is_right &= more[f"different_texts_{OURS}"] == 0
    title = f"{options.model}, threads: {options.threads}, medians of {options.turns} turns\n" + (
        "\n".join(f"  {name}: {version}" for name, version in versions.items())
    )
    report(title, COLUMNS, rows, {**numbers, "texts_right": is_right, **versions}, options.json)
    return 0 if is_right else 1


def files(options: argparse.Namespace, folder: Path):
    """The model's own file, then the same model in each format that was asked for."""
    source = locate(options.model)
    yield "", source
    from bench.peers.files import FORMATS, write_as

    for name in options.formats:
        path = folder / f"{name}.gguf"
        holds = write_as(FORMATS[name], source, path)
        print(f"{name}: {holds}, {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr, flush=True)
        yield name, path
        path.unlink()


def of_file(path: Path, options: argparse.Namespace) -> tuple[list[Line], dict[str, str]]:
    """All engines on one file: what was measured, and their versions."""
    from runtime.model.tokenizer import Tokenizer

    text = Tokenizer.load(path).encode(TEXT.read_text(encoding="utf-8"))[:CONTEXT_TOKENS]
    engines = measure(
        *(path, text, options.threads, options.prompt, options.tokens),
        *(options.turns, options.starts),
    )
    versions = {name: engine.version for name, engine in engines.items()}
    return lines(engines, options.prompt, options.tokens), versions


def served(path: Path, folder: Path, options: argparse.Namespace) -> list[Line]:
    """Both servers, plain and with the embedded draft."""
    from gguf import GGMLQuantizationType

    from bench.peers import served
    from bench.peers.files import write_checkpoint
    from runtime.bench.prompts import SHIPPED, read_questions
    from runtime.model.checkpoint import open_checkpoint

    draft = folder / "draft.gguf"
    write_checkpoint(open_checkpoint(DRAFT), path, draft, GGMLQuantizationType.Q8_0)
    questions = [question.text for question in read_questions(SHIPPED, 2)]
    return served_lines(served.measure(path, draft, questions, options.threads, options.tokens))


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.peers", __doc__)
    parser.add_argument("--model", default=TARGET, help="a llama in a GGUF file")
    parser.add_argument("--formats", nargs="*", default=["q4_0"], help="the model in these as well")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3, help="of each engine on each file")
    parser.add_argument("--tokens", type=int, default=64, help="decoded at a time")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--served", action=argparse.BooleanOptionalAction, default=None)
    options = parser.parse_args()
    if find_spec("xllamacpp") is None:
        parser.error("llama.cpp is not here; install it with pip install -e '.[bench]'")
    from bench.peers.files import FORMATS

    options.formats = [name.lower() for name in options.formats]
    for name in options.formats:
        if name not in FORMATS:
            parser.error(f"--formats has {name!r}; expected some of {', '.join(FORMATS)}")
    if min(options.threads, options.turns, options.starts, options.tokens) < 1:
        parser.error("--threads, --turns, --starts and --tokens are 1 or more")
    most = CONTEXT_TOKENS - max(ROWS) - 1
    if not BEHIND + max(ROWS) < options.prompt <= most or BEHIND + options.tokens > most:
        parser.error(f"a prompt has {BEHIND + max(ROWS) + 1} to {most} tokens")
    if options.served is None:
        options.served = options.model == TARGET  # the embedded draft's target
    return options


if __name__ == "__main__":
    sys.exit(run("bench.peers", main))
