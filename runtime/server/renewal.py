"""Users and certificates read again, at SIGHUP or when their files change, while answers go on.

What cannot be used is told in the log, and what was read before stays in force.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from runtime.config import ConfigError, ServerConfig
from runtime.logs import fields
from runtime.server.users import load_users
from runtime.system import on_hangup
from runtime.wire.auth import NO_CERTIFICATE
from runtime.wire.tls import Certificate, TLSError

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at the files

RenewKeys = Callable[[Mapping[str, bytes] | None], None]
Renewed = Callable[[Mapping[str, bytes] | None, bytes], None]
Stamp = tuple[int, int, int]  # when a file was written, which one it is, and its bytes


@asynccontextmanager
async def renewing(
    config: ServerConfig,
    certificates: Iterable[Certificate | None],
    renewed: Renewed,
) -> AsyncIterator[None]:
    """A `Renewal` of these while the context lasts."""
    users = Path(config.users) if config.users else None
    renewal = Renewal(users, [one for one in certificates if one is not None], renewed)
    running = asyncio.ensure_future(renewal.run())
    try:
        yield
    finally:
        running.cancel()


class Renewal:
    """`renewed(users, certificate)` is called in the event loop when something is new.

    users: the file of users, None where everyone is let in. certificates: all that are served; the
    hash of the first is what is told. Raises ConfigError from `renewed` where users cannot be used.
    """

    def __init__(
        self,
        users: Path | None,
        certificates: Iterable[Certificate],
        renewed: Renewed,
    ) -> None:
        self._users, self._certificates = users, tuple(certificates)
        self._renewed = renewed
        self._seen = self._stamps()

    async def run(self) -> None:
        """For as long as the server runs."""
        on_hangup(asyncio.get_running_loop(), self.read)
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Read what has changed since the last look."""
        if (stamps := self._stamps()) != self._seen:
            self._seen = stamps
            self.read()

    def read(self) -> None:
        """Read all files and put them in force, if all of them can be used."""
        try:
            users = None if self._users is None else load_users(self._users)
            fresh = [certificate.on_file() for certificate in self._certificates]
            self._renewed(users, fresh[0].hash if fresh else NO_CERTIFICATE)
        except (ConfigError, TLSError) as error:
            log.error("users and certificates stay as they were", extra=fields(reason=str(error)))
            return
        for certificate in self._certificates:
            certificate.serve_file()
        known = None if users is None else len(users)
        log.info("users and certificates read again", extra=fields(users=known))

    def _stamps(self) -> dict[Path, Stamp | None]:
        """Of all files; None for one that is not there."""
        files = [] if self._users is None else [self._users]
        files += [file for one in self._certificates for file in (one.file, one.key)]
        return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
