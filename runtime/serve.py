"""A server in this process, for tests and notebooks: the one that python -m runtime.server starts.

It runs in a thread of its own and hears no signals; leaving the context stops it at once.
"""

from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from runtime.background import Background
from runtime.config import ConfigError, ServerConfig


class Server:
    """Loads a model and serves it while the context lasts.

        with Server(ServerConfig(model="smollm2", port=0)) as server:
            with Edge(EdgeConfig(server=server.address)) as edge:
                print(edge.generate("Why is the sky blue?").text)

    port, address   where it listens, "host:port" as an edge's `server` takes it
    openai_url      of the API for clients without an edge, as they take it: empty without `openai`
    """

    def __init__(self, config: ServerConfig | None = None) -> None:
        """config: without one the embedded model, on any free port. Raises ConfigError."""
        self.config = config or ServerConfig(port=0, http="")
        for name in ("add_user", "redirect", "trace"):
            if getattr(self.config, name):
                raise ConfigError(f"{name}= is for python -m runtime.server; leave it out here")
        self.port = 0
        self.address = ""
        self.openai_url = ""
        self._background = Background()

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Load the model and open the port.

        Raises ConfigError, ModelError, or ConnectionError where the port cannot be had.
        """
        from runtime.console import Terminal
        from runtime.server.start import serve

        opened: Future[tuple[str, int]] = Future()

        def on_open(host: str, port: int) -> None:
            opened.set_result((host, port))

        def on_api_open(url: str) -> None:
            self.openai_url = url

        serving = self._background.run(
            serve(self.config, Terminal(quiet=True), opened=on_open, api_opened=on_api_open)
        )
        try:
            either: list[Future[Any]] = [opened, serving]
            wait(either, return_when=FIRST_COMPLETED)
            if serving.done():
                serving.result()
        except BaseException:
            self.stop()
            raise
        host, self.port = opened.result()
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def stop(self) -> None:
        """Close all connections and the port, and free the model."""
        self._background.stop()
