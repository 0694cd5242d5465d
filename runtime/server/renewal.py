"""Users and certificates read again, at SIGHUP or when their files change, while answers go on.

What cannot be used is told in the log, and what was read before stays in force.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from runtime.config import ConfigError, ServerConfig
from runtime.logs import fields
from runtime.option_files import is_there
from runtime.server.users import load_users
from runtime.system import on_hangup
from runtime.wire.tls import Certificate, TLSError

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at the files

RenewKeys = Callable[[Mapping[str, bytes] | None], None]
Renewed = Callable[[Mapping[str, bytes] | None, Certificate | None], None]
# when a file was written, when it or its rights were changed, which one it is, and its bytes
Stamp = tuple[int, int, int, int]


@asynccontextmanager
async def renewing(
    renewal: "Renewal", certificates: Iterable[Certificate | None], renewed: Renewed
) -> AsyncIterator[None]:
    """Look after the files while the context lasts; what has changed since `renewal` was made is
    read at once."""
    known = [one for one in certificates if one is not None]
    running = asyncio.ensure_future(renewal.run(known, renewed))
    try:
        yield
    finally:
        running.cancel()


class Renewal:
    """To be made in the event loop, before the files are read for the first time.

    `renewed(users, certificate)` is called there when something is new. users: tokens by name, None
    where everyone is let in; certificate: what the first of those that are served is now. It may
    raise ConfigError where the users cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        named = (config.users, config.tls_certificate, config.tls_key)
        self._users = Path(config.users) if config.users else None
        self._files = [Path(name) for name in named if name]
        self._seen = self._stamps()
        self._asked = False
        self._wake = asyncio.Event()
        on_hangup(asyncio.get_running_loop(), self.ask)

    def ask(self) -> None:
        """Read all files at the next opportunity, changed or not."""
        self._asked = True
        self._wake.set()

    async def run(self, certificates: Sequence[Certificate], renewed: Renewed) -> None:
        """For as long as the server runs."""
        loop = asyncio.get_running_loop()
        while True:
            self.look(certificates, renewed)
            # not wait_for: before Python 3.12 it may swallow a cancellation
            timer = loop.call_later(LOOK_S, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()

    def look(self, certificates: Sequence[Certificate], renewed: Renewed) -> None:
        """Read what has changed since the last look, or all if that was asked for."""
        stamps = self._stamps()
        if not self._asked and stamps == self._seen:
            return
        self._seen, self._asked = stamps, False
        try:
            users = self._read(certificates, renewed)
        except (ConfigError, TLSError) as error:
            log.error("users and certificates stay as they were", extra=fields(reason=str(error)))
        else:
            log.info("users and certificates read again", extra=fields(users=users))

    def _read(self, certificates: Sequence[Certificate], renewed: Renewed) -> int | None:
        """Put all files in force, if all of them can be used; how many users there are."""
        for file in self._files:
            if is_there(file) and not file.is_file():
                raise ConfigError(f"{file} is no regular file, which could be read again")
        users = None if self._users is None else load_users(self._users)
        fresh = [certificate.on_file() for certificate in certificates]
        renewed(users, fresh[0] if fresh else None)
        for certificate in certificates:
            certificate.serve_file()
        if fresh and fresh[0].doubt:
            about = fields(file=fresh[0].file, reason=fresh[0].doubt)
            log.warning("whoever does not pin the certificate refuses it", extra=about)
        return None if users is None else len(users)

    def _stamps(self) -> dict[Path, Stamp | None]:
        """Of all files; None for one that is not there."""
        return {file: _stamp(file) for file in self._files}


def _stamp(file: Path) -> Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
