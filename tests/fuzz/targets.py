"""What is fuzzed: a target takes any bytes and raises only where the project is at fault.

Each stands for a door that strangers' bytes come through: the wire, and model files.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runtime.model import weights
from runtime.model.config import ModelError
from runtime.wire.connection import Connection, ConnectionState, Role
from runtime.wire.frames import (
    HEADER,
    MAX_LONG_FRAME_BYTES,
    decode_body,
    decode_header,
    encode_frame,
)
from runtime.wire.messages import ProtocolError
from tests.wire.cases import CONVERSATION, VOCABULARY

CORPUS = Path(__file__).parent / "corpus"
FOLDER = Path(tempfile.mkdtemp(prefix="specedge-fuzz-"))


def frames(data: bytes) -> None:
    """A frame is refused, or it is the one encoding of its message."""
    if len(data) < HEADER.size:
        return
    body = data[HEADER.size :]
    try:
        header = decode_header(data)
        message = decode_body(header, body, VOCABULARY)
    except ProtocolError:
        return
    whole = HEADER.pack(len(data), header.type, 0, header.request, header.seq) + body
    assert encode_frame(message, header.seq, VOCABULARY) == whole, message


def conversation(data: bytes) -> None:
    """Byte 0: how much of a good conversation goes before. Then frames to one of its ends."""
    if not data:
        return
    ends = {role: Connection(role) for role in Role}
    for role, message in CONVERSATION[: (data[0] >> 1) % len(CONVERSATION)]:
        ends[role.peer].receive(ends[role].send(message))
        ends[role].receive(ends[role.peer].data_to_send())
    end = ends[list(Role)[data[0] & 1]]
    try:
        end.receive(_numbered(data[1:], end.frames_received))
    except ProtocolError:
        assert end.state is ConnectionState.CLOSED
    assert end.buffered_bytes < MAX_LONG_FRAME_BYTES


def _numbered(data: bytes, first: int) -> bytes:
    """Frames with the sequence numbers that are due, so that more than the first is looked at."""
    numbered, at = bytearray(data), 0
    while at + HEADER.size <= len(data):
        length = HEADER.unpack_from(data, at)[0]
        HEADER.pack_into(numbered, at, *HEADER.unpack_from(data, at)[:4], first & 0xFFFF)
        at, first = at + max(length, HEADER.size), first + 1
    return bytes(numbered)


def gguf(data: bytes) -> None:
    """A whole model in one file."""
    path = FOLDER / "model.gguf"
    path.write_bytes(data)
    _load(path)


def safetensors(data: bytes) -> None:
    """The tensors of a folder whose configuration is good."""
    _load(_folder({"model.safetensors": data}))


def config(data: bytes) -> None:
    """The configuration of a folder whose tensors are good."""
    _load(_folder({"config.json": data}))


def index(data: bytes) -> None:
    """The index of a folder whose files are good."""
    _load(_folder({"model.safetensors.index.json": data}))


def _folder(files: dict[str, bytes]) -> Path:
    """A good model folder with these files in place of its own."""
    folder = FOLDER / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(CORPUS / "safetensors/tiny.safetensors", folder / "model.safetensors")
    shutil.copy(CORPUS / "config/tiny.json", folder / "config.json")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _load(path: Path) -> None:
    with suppress(ModelError):
        weights.load(path)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (frames, conversation, gguf, safetensors, config, index)
}
