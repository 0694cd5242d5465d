"""The edge on its event loop: loads, connects, and writes answers, several at a time.

To be called on that loop alone; the fronts for other threads are in `client.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from runtime.config import EdgeConfig, parse_address
from runtime.edge import greeting
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.guide import Matcher
from runtime.edge.draft.speculation import Proactive, TreeShape
from runtime.edge.loading import Loading, MakeDrafter
from runtime.edge.loop import Drafting, Round
from runtime.edge.net.link import Credentials, ServerError, reach
from runtime.edge.net.uplink import Uplink
from runtime.edge.prompts import Prompts
from runtime.edge.resume import Transcript, resuming
from runtime.edge.writer import Answers
from runtime.wire import messages as wire


class Worker(Answers):
    """One edge. `on_lost` hears when a lost server begins to be looked for."""

    def __init__(
        self, config: EdgeConfig, on_lost: Callable[[ServerError], None], make_drafter: MakeDrafter
    ) -> None:
        super().__init__()
        self._config, self._on_lost, self._make_drafter = config, on_lost, make_drafter
        self._loading: Loading | None = None
        self._batcher: Batcher | None = None

    @property
    def connected(self) -> bool:
        """Whether the server is there, as far as is known, and answers can be asked for."""
        return self._batcher is not None and self.uplink is not None and self.uplink.alive

    async def connect(self) -> None:
        """Greet the server while the draft model is being loaded; what was loaded is kept.

        Where nobody listens nothing is loaded, and what a greeting may be refused for is told
        before the model is waited for. Raises ConfigError, ModelError or ServerError.
        """
        config = self._config
        address, token = parse_address(config.server), greeting.token(config)
        known = greeting.trusted(config)
        if self._loading is None or self._loading.failed:
            await reach(*address, known, config.stack)
            self._loading = Loading(config, self._make_drafter)
        if self.uplink is None:
            # shielded: who gives up does not end what others may wait for
            vocabulary = await asyncio.shield(asyncio.wrap_future(self._loading.vocabulary))
            credentials = Credentials(token, known, vocabulary.tokenizer.vocabulary_hash)
            hello = greeting.hello(config, vocabulary)
            self.uplink = Uplink(*address, hello, credentials, config.stack)
        await self.uplink.link()
        if self._batcher is None:
            drafter = await asyncio.shield(asyncio.wrap_future(self._loading.drafter))
            self._batcher = Batcher(drafter)
            self.prompts = Prompts(self._loading.vocabulary.result().tokenizer, self.uplink)

    def _rounds(
        self,
        uplink: Uplink,
        transcript: Transcript,
        config: EdgeConfig,
        on_reading: Callable[[wire.Reading], None],
    ) -> AsyncGenerator[Round, None]:
        assert self._loading is not None, "not connected"
        assert self._batcher is not None, "not connected"
        return resuming(
            uplink,
            self._batcher,
            transcript,
            drafting(config, self._loading.vocabulary.result().matcher),
            config.reconnect_s,
            self._on_lost,
            on_reading,
        )

    async def close(self) -> None:
        """Cancel all answers, hang up, and stop drafting."""
        await super().close()
        if self._batcher is not None:
            await self._batcher.close()


def drafting(config: EdgeConfig, matcher: Callable[[str, str], Matcher]) -> Drafting:
    """How the trees of an answer are grown."""
    shape = TreeShape(
        config.max_budget, config.max_n_beams, config.max_beam_len, config.max_branch_width
    )
    return Drafting(shape, config.coupling, Proactive(config.proactive), matcher)
