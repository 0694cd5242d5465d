"""Starting a server: model, KV pool, identity, port, and the lines a person sees meanwhile."""

import asyncio
import platform
from ipaddress import ip_address
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from runtime.config import ServerConfig
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.model.weights import ModelError
from runtime.server.loop import Identity, Server
from runtime.wire.tcp import listen


class StartError(Exception):
    """The server cannot start; the message says what to mend."""


def start(config: ServerConfig) -> None:
    """Load, listen and serve until a signal. Raises StartError."""
    try:
        asyncio.run(_serve(config, Console(highlight=False)))
    except (ModelError, ConnectionError) as error:
        raise StartError(str(error)) from error


async def _serve(config: ServerConfig, console: Console) -> None:
    # The port is reserved at once, so that a busy one is reported before the model is loaded, and
    # opened last, so that nobody reaches a server that cannot answer.
    listener = await listen(config.host, config.port, lambda: server.new_peer(), start=False)
    engine = _load(config, console)
    server = Server(config, engine, _identity(config, engine))
    kv = engine.kv
    console.print(
        f"{config.model} ready on {engine.model.device}: {engine.model.config.n_layers} layers, "
        f"{config.dtype}, KV for {kv.n_pages * kv.page_size} tokens "
        f"({kv.n_pages * kv.bytes_per_page / 2**20:.0f} MiB)"
    )

    def announce(host: str, port: int) -> None:
        if not ip_address(host).is_loopback:
            console.print(
                f"WARNING: {host} is not this machine alone, and edges are not authenticated yet: "
                "anyone who can reach this port can use the model",
                style="bold yellow",
                soft_wrap=True,
            )
        if ip_address(host).is_unspecified:
            host = platform.node()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        console.print(f"python -m runtime.edge --server {address} --chat", soft_wrap=True)

    await server.run(listener, announce)
    totals = server.totals
    console.print(
        f"stopped after {totals.steps} steps: {totals.tokens} tokens in {totals.verdicts} "
        f"verdicts, {totals.busy_s:.1f} s of verification"
    )


def _load(config: ServerConfig, console: Console) -> Engine:
    columns = (TextColumn(f"loading {config.model}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("load", total=None)
        return open_engine(
            config.model,
            config.dtype,
            config.device,
            lambda model: config.kv_tokens,
            config.page_size,
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _identity(config: ServerConfig, engine: Engine) -> Identity:
    tokenizer = Tokenizer.load(config.model)
    longest = engine.model.config.max_context
    return Identity(
        model=Path(config.model).name,
        # a model may have more rows than its tokenizer has tokens, and their ids must fit too
        vocabulary_size=max(tokenizer.vocabulary_size, engine.model.config.vocab_size),
        vocabulary_hash=tokenizer.vocabulary_hash(),
        max_context=min(config.max_context or longest, longest, config.kv_tokens),
    )
