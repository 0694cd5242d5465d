"""Pages of the KV pool on disk: one file each, written and read by one thread.

Files are of one run of the server: what they hold is a function of weights, text and build, and
none of these can change under them. They are removed when it stops, and those that a killed run has
left when the next one starts. A file that does not hold what was written counts as lost, and its
tokens are computed again.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from runtime.config import ConfigError, ServerConfig
from runtime.logs import fields
from runtime.model.kv_cache import PagedKV
from runtime.model.page_copy import PageCopy
from runtime.server.schedule.prefix_cache import Key
from runtime.server.schedule.spill import Spill
from runtime.system import free_memory_bytes, lock_alone

log = logging.getLogger(__name__)

GIB = 2**30
ENDING = ".kv.safetensors"


@dataclass(frozen=True)
class _File:
    path: Path
    n_bytes: int
    digest: bytes  # of what was written


def _at_once(path: str, flags: int) -> int:
    """Open a file that is for this account alone; one that became a pipe is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)


class PageFolder:
    """Pages in files of a folder that is this process's alone. Used by one thread at a time."""

    def __init__(self, path: Path):
        """Raises ConfigError."""
        self.path = path
        self._files: dict[Key, _File] = {}
        self._count = 0
        self._lock = self._claim()

    def write(self, key: Key, data: bytes) -> None:
        """Keep a page. Raises OSError, and then leaves no file."""
        self._count += 1
        path = self.path / f"{self._count}{ENDING}"
        try:
            # "x": whoever may write to this folder cannot have it write where a link leads
            with open(path, "xb", opener=_at_once) as file:
                file.write(data)
        except FileExistsError:
            raise  # it is not ours
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._files[key] = _File(path, len(data), blake2b(data).digest())

    def read(self, key: Key) -> bytes | None:
        """The page, or None if it is not there as it was written."""
        if (kept := self._files.get(key)) is None:
            return None
        try:
            with open(kept.path, "rb", opener=_at_once) as file:
                data = file.read(kept.n_bytes + 1) or b""  # None of an empty pipe
        except OSError:
            return None
        return data if blake2b(data).digest() == kept.digest else None

    def drop(self, key: Key) -> None:
        """Remove a page, if it is there and can be removed."""
        if kept := self._files.pop(key, None):
            with contextlib.suppress(OSError):  # the next start tries again
                kept.path.unlink()

    def close(self) -> None:
        """Remove all that is there."""
        for key in [*self._files]:
            self.drop(key)
        os.close(self._lock)

    def _claim(self) -> int:
        """Make sure that the folder is there, that no other server uses it, and that it is empty
        of pages.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_alone(self.path / "lock")
            for left in self.path.glob("*" + ENDING):
                left.unlink()
            return lock
        except BlockingIOError as error:
            raise ConfigError(
                f"--spill-folder {self.path} is another server's; each needs one of its own"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"--spill-folder {self.path}: {error.strerror}; name one that can be written to"
            ) from error


class Spilling:
    """What a server does with pages that its KV pool gives up.

    spill   which of them are where; for the scheduler
    """

    def __init__(self, memory_pages: int, disk_pages: int, folder: PageFolder | None, pinned: bool):
        """`pinned`: pages that come from disk go to a GPU."""
        self.spill = Spill[PageCopy](memory_pages, disk_pages, self._write, self._drop)
        self._folder, self._pinned = folder, pinned
        self._thread = ThreadPoolExecutor(1, "spill")
        self._tells_failure = True

    async def fetch(self, keys: Sequence[Key]) -> None:
        """Bring into memory what of these pages is on disk and of use."""
        wanted = self.spill.to_read(keys)
        if wanted and self._folder is not None:
            loop = asyncio.get_running_loop()
            pages = await loop.run_in_executor(self._thread, self._read, wanted)
            if pages[-1][1] is None:
                reason = f"{self._folder.path} does not hold what was written there"
                log.warning("a text's pages are lost on disk", extra=fields(reason=reason))
            self.spill.was_read(pages)

    def close(self) -> None:
        """Wait for the page that is being written or read; no other is."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, keys: Sequence[Key]) -> list[tuple[Key, PageCopy | None]]:
        """The pages of these keys up to the first that is lost, which has none."""
        assert self._folder is not None, "pages on a disk that there is not"
        pages: list[tuple[Key, PageCopy | None]] = []
        for key in keys:
            if (data := self._folder.read(key)) is None:
                return [*pages, (key, None)]
            pages.append((key, PageCopy.from_bytes(data, self._pinned)))
        return pages

    def _write(self, key: Key, copy: PageCopy) -> None:
        assert self._folder is not None, "pages for a disk that there is not"
        loop, write = asyncio.get_running_loop(), self._folder.write

        def tell(writing: "Future[None]") -> None:
            if not writing.cancelled():
                with contextlib.suppress(RuntimeError):  # the server has stopped
                    loop.call_soon_threadsafe(self._written, key, writing.exception())

        writing = self._thread.submit(lambda: write(key, copy.to_bytes()))
        writing.add_done_callback(tell)

    def _written(self, key: Key, error: BaseException | None) -> None:
        self.spill.written(key, succeeded=error is None)
        if self._tells_failure and error is not None:
            self._tells_failure = False  # the next would say the same
            log.warning("pages cannot be kept on disk", extra=fields(reason=str(error)))

    def _drop(self, key: Key) -> None:
        assert self._folder is not None, "pages on a disk that there is not"
        self._thread.submit(self._folder.drop, key)


@contextlib.contextmanager
def folder_of(config: ServerConfig) -> Iterator[PageFolder | None]:
    """Where pages go on disk while the context lasts, if they do. Raises ConfigError."""
    if not config.spill_folder:
        yield None
        return
    with contextlib.closing(PageFolder(Path(config.spill_folder).expanduser())) as folder:
        yield folder


def spilling_of(config: ServerConfig, kv: PagedKV, folder: PageFolder | None) -> Spilling | None:
    """As the options say. Raises ConfigError."""
    if not config.spill_memory_gib:
        return None
    memory = _pages(config.spill_memory_gib, "--spill-memory-gib", kv, free_memory_bytes())
    disk = 0
    if folder:
        free_bytes = shutil.disk_usage(folder.path).free
        disk = _pages(config.spill_disk_gib, "--spill-disk-gib", kv, free_bytes)
    return Spilling(memory, disk, folder, pinned=kv.device.type == "cuda")


def _pages(gib: float, option: str, kv: PagedKV, free_bytes: int | None) -> int:
    if free_bytes is not None and gib * GIB > free_bytes:
        raise ConfigError(
            f"{option} {gib:g} is more than the {free_bytes / GIB:.1f} GiB free there"
        )
    pages = int(gib * GIB) // kv.bytes_per_page
    if not pages:
        size = kv.bytes_per_page / GIB
        raise ConfigError(f"{option} {gib:g} holds no page of this model: {size:.2g} GiB")
    return pages
