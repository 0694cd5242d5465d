"""A chat that comes back after others took its pages: from memory, from disk, and after damage."""

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runtime import Server
from runtime.config import ConfigError, ServerConfig
from runtime.model.config import KVShape, ModelError
from runtime.model.kv_cache import PagedKV
from runtime.model.page_copy import PageCopy
from runtime.server.schedule.prefix_cache import Key
from runtime.server.spilling import PageFolder, folder_of, spilling_of
from tests.server.in_loop import Serving, run, serving

KEY: Key = "somebody", b"1"
CHATS = [
    f"{name} is what we talk about today: {name}. " * 2
    for name in ("Rain", "Snow", "Wind", "Fog!", "Hail")
]
PAGES = 12  # of the pool: less than two texts


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[PageFolder]:
    folder = PageFolder(tmp_path / "pages")
    yield folder
    folder.close()
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["lock"]


def test_a_file_is_there_as_it_was_written_or_lost(folder: PageFolder, tmp_path: Path) -> None:
    (tmp_path / "pages" / "mine.txt").touch()
    assert folder.read(KEY) is None
    for changed in (lambda data: data, lambda data: data[:-1], lambda data: b"y" + data[1:]):
        folder.write(KEY, b"x" * 100)
        (file,) = (tmp_path / "pages").glob("*.safetensors")
        file.write_bytes(changed(file.read_bytes()))
        assert folder.read(KEY) == (None if changed(b"xx") != b"xx" else b"x" * 100)
        folder.drop(KEY)
        assert not file.exists()
        assert folder.read(KEY) is None
    folder.write(KEY, b"")
    (file,) = (tmp_path / "pages").glob("*.safetensors")
    file.unlink()
    assert folder.read(KEY) is None
    (tmp_path / "pages" / "mine.txt").unlink()


needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither modes nor pipes")


@needs_posix
def test_files_are_for_this_account_alone(tmp_path: Path) -> None:
    """In a folder that others may read and write to: nothing is written where a link leads."""
    (tmp_path / "pages").mkdir(mode=0o755)
    folder, others = PageFolder(tmp_path / "pages"), tmp_path / "others"
    others.write_bytes(b"precious")
    folder.write(KEY, b"x" * 100)
    (file,) = (tmp_path / "pages").glob("*.safetensors")
    assert file.stat().st_mode & 0o777 == 0o600
    link = file.with_name(file.name.replace("1", "2"))
    link.symlink_to(others)
    with pytest.raises(FileExistsError):
        folder.write(("somebody", b"2"), b"x" * 100)
    assert folder.read(("somebody", b"2")) is None
    folder.close()
    assert others.read_bytes() == b"precious"


@needs_posix
@pytest.mark.parametrize("what", ["pipe", "folder", "endless", "no folder"])
def test_what_a_file_became_is_not_waited_for(tmp_path: Path, what: str) -> None:
    """Nor read for ever, and no reason not to stop."""
    folder = PageFolder(tmp_path / "pages")
    folder.write(KEY, b"x" * 100)
    (file,) = (tmp_path / "pages").glob("*.safetensors")
    file.unlink()
    match what:
        case "pipe":
            os.mkfifo(file)
            writer = os.open(file, os.O_RDWR)
        case "folder":
            file.mkdir()
        case "endless":
            file.symlink_to("/dev/zero")
        case "no folder":
            (tmp_path / "pages" / "lock").unlink()
            (tmp_path / "pages").rmdir()
            (tmp_path / "pages").touch()
    assert folder.read(KEY) is None
    folder.close()
    if what == "pipe":
        os.close(writer)
    if what == "folder":
        with pytest.raises(ConfigError, match="--spill-folder"):
            PageFolder(tmp_path / "pages")


def test_a_folder_is_one_servers(folder: PageFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another server's"):
        PageFolder(tmp_path / "pages")


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    for name in ("3.kv.safetensors", "notes.safetensors"):
        (tmp_path / name).touch()
    PageFolder(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "notes.safetensors"]


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="name one that can be written to"):
        PageFolder(tmp_path / "file" / "pages")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"spill_disk_gib": 1.0, "spill_folder": "x"}, "give both"),
        ({"spill_memory_gib": 1.0, "spill_disk_gib": 1.0}, "go together"),
        ({"spill_memory_gib": 1.0, "spill_folder": "x"}, "go together"),
        ({"spill_memory_gib": 1.0, "redirect": "a:1"}, "give --spill-memory-gib to the replicas"),
    ],
)
def test_options_belong_together(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ServerConfig(**options)


def test_less_than_a_page_is_a_sentence() -> None:
    kv = PagedKV([KVShape(1, 8, 8)], 1, 16, torch.float32)
    with pytest.raises(ConfigError, match=r"--spill-memory-gib 1e-07 holds no page .* GiB"):
        spilling_of(ServerConfig(spill_memory_gib=1e-7), kv, None)


def test_more_than_there_is_is_a_sentence(tmp_path: Path) -> None:
    """At the start, not when the memory or the disk is full."""
    kv = PagedKV([KVShape(1, 8, 8)], 1, 16, torch.float32)
    with pytest.raises(ConfigError, match=r"--spill-memory-gib 1e.06 is more than the .* GiB free"):
        spilling_of(ServerConfig(spill_memory_gib=1e6), kv, None)
    folder = str(tmp_path / "pages")
    config = ServerConfig(spill_memory_gib=1e-4, spill_disk_gib=1e9, spill_folder=folder)
    sentence = r"--spill-disk-gib 1e.09 is more than the .* GiB free"
    with folder_of(config) as pages, pytest.raises(ConfigError, match=sentence):
        spilling_of(config, kv, pages)


def test_a_server_that_cannot_start_leaves_its_folder_and_its_port(tmp_path: Path) -> None:
    """To whoever is next in the same process."""
    spilled = {"spill_memory_gib": 1e-4, "spill_disk_gib": 1e-4, "spill_folder": str(tmp_path)}
    config = ServerConfig(model=str(tmp_path / "none"), port=0, http="", **spilled)
    before = open_sockets()
    with pytest.raises(ModelError, match="does not exist") as told:
        Server(config).start()
    assert open_sockets() == before, f"{told} holds what is not closed"
    with folder_of(config) as folder:
        assert folder is not None


def open_sockets() -> int:
    links = (link for link in gc.get_objects() if issubclass(type(link), socket.socket))
    return sum(link.fileno() >= 0 for link in links)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_page_keeps_its_bits(dtype: torch.dtype) -> None:
    """In memory and as a file, layers of unequal widths included."""
    kv = PagedKV([KVShape(2, 8, 8), KVShape(1, 16, 4)], 3, 4, dtype)
    for pool in kv.pools:
        pool.copy_(torch.randn(pool.shape))
    before = [pool[:, :, 1].float().clone() for pool in kv.pools]
    copy = kv.copy_out(1)
    for pool in kv.pools:
        pool[:, :, 1] = 0
    kv.copy_in(PageCopy.from_bytes(copy.to_bytes(), pinned=False), 2)
    for pool, was in zip(kv.pools, before, strict=True):
        assert torch.equal(pool[:, :, 2].float(), was)
        assert not pool[:, :, 1].float().any()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_chat_that_comes_back(
    tiny_pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bool
) -> None:
    """Five chats in a pool for one and a half: nothing is computed twice, and no text is another.

    Memory holds a fifth of what the pool gives up; where files are damaged, it is computed again.
    """
    page_gib = 16 * 2 * 2 * 2 * 16 * 4 / 2**30  # of the tiny target

    async def texts(**options: object) -> tuple[list[list[int]], Serving]:
        async with serving(tiny_pair[0], **options) as it:
            edge, answers, spill = it.edge(), [], it.server.scheduler.spill
            for turn in range(2):
                for chat in CHATS:
                    answer = edge.generate(chat + " and so" * turn, raw=True, max_tokens=20)
                    await answer.text
                    answers.append(answer.tokens)
                    await it.until(lambda: not (it.server.requests or spill.writing))
                if damaged:
                    for file in tmp_path.glob("*.safetensors"):
                        file.write_bytes(b"nonsense")
            return answers, it

    async def scenario() -> None:
        plain, _ = await texts()
        spilled = {
            "spill_memory_gib": 8.5 * page_gib,
            "spill_disk_gib": 64 * page_gib,
            "spill_folder": str(tmp_path),
        }
        again, it = await texts(kv_tokens=16 * PAGES, max_nodes=0, **spilled)
        assert again == plain
        scheduler = it.server.scheduler
        assert scheduler.spill.memory_pages == 8
        assert scheduler.spill.disk_pages == 64
        assert scheduler.cache.evictions > 20
        assert damaged == ("a text's pages are lost on disk" in caplog.text)
        assert damaged == (scheduler.spill.hits < len(CHATS) * (len(CHATS[0]) // 16 - 1))

    run(scenario)
