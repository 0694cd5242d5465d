"""Files of users and tokens, and how long an address waits after wrong ones."""

import os
import random
from pathlib import Path

import pytest

from runtime.config import ConfigError, ServerConfig, parse_address
from runtime.option_files import read_token
from runtime.server.users import MAX_ADDRESSES, Patience, add_user, load_users, users_of


def secret_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "users.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_users_that_were_added_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    tokens = {name: add_user(path, name) for name in ("alice", "bob@example.org", "c.d-e_f")}
    assert load_users(path) == {name: token.encode() for name, token in tokens.items()}
    assert len(set(tokens.values())) == 3
    assert min(map(len, tokens.values())) == 64
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n# and now others", " # Alice"])
@pytest.mark.parametrize("start", ["", "# people\n", "\ufeff"])
def test_a_user_is_added_to_a_file_that_was_edited(tmp_path: Path, start: str, end: str) -> None:
    """Some editors end the last line, others do not; some begin with a byte order mark."""
    path = secret_file(tmp_path, f'{start}alice = "{"a" * 32}"{end}')
    token = add_user(path, "bob")
    assert load_users(path) == {"alice": b"a" * 32, "bob": token.encode()}


def test_a_user_is_added_where_none_is(tmp_path: Path) -> None:
    path = secret_file(tmp_path, "# nobody yet")
    with pytest.raises(ConfigError, match="names no users; add one with --add-user NAME"):
        load_users(path)
    token = add_user(path, "bob")
    assert load_users(path) == {"bob": token.encode()}


def test_a_user_is_added_once(tmp_path: Path) -> None:
    path = tmp_path / "users.toml"
    add_user(path, "alice")
    with pytest.raises(ConfigError, match="has a user alice already"):
        add_user(path, "alice")


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 65, "café", '"', "a=b"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    path = tmp_path / "users.toml"
    with pytest.raises(ConfigError, match="cannot be the name of a user"):
        add_user(path, name)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no users"),
        ('alice = "short"', "alice .* too short"),
        ("alice = 12345678901234567890123456789012345", "alice .* too short"),
        ('"a b" = "' + "x" * 40 + '"', "cannot be the name"),
        ("[alice", "is not valid TOML"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_users(secret_file(tmp_path, text))


def test_what_is_no_file_is_neither_read_nor_written_nor_to_be_made_private() -> None:
    """Who was told to run chmod 600 /dev/null, and is root, would have a broken machine."""
    for path in (Path("/dev/null"), Path("/dev/zero"), Path("/")):
        for use in (load_users, read_token, lambda path: add_user(path, "alice")):
            with pytest.raises(ConfigError, match=f"^{path} is a folder or a device; expected a"):
                use(path)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o602, 0o601])
def test_a_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, 'alice = "' + "x" * 40 + '"', mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_users(path)
    path.chmod(0o400)
    assert load_users(path) == {"alice": b"x" * 40}


def test_a_token_is_not_written_where_others_may_read_it(tmp_path: Path) -> None:
    path = secret_file(tmp_path, "", 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        add_user(path, "alice")
    assert path.read_bytes() == b""


def test_a_name_that_cannot_be_looked_at_is_a_sentence() -> None:
    """As below a folder of somebody else."""
    for use in (load_users, read_token, lambda path: add_user(path, "alice")):
        with pytest.raises(ConfigError, match=r"cannot .*: File name too long"):
            use(Path("a" * 300))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere: No such file"):
        load_users(tmp_path / "nowhere")


def test_who_has_an_adapter_is_a_user(tmp_path: Path) -> None:
    path = secret_file(tmp_path, 'alice = "' + "x" * 40 + '"')
    adapters = {"users": str(path), "adapter": ("sql=a",)}
    config = ServerConfig(**adapters, user_adapter=("alice=sql",))
    assert users_of(config) == {"alice": b"x" * 40}
    assert users_of(ServerConfig()) is None
    wrong = ServerConfig(**adapters, user_adapter=("alice=sql", "bob=sql"))
    with pytest.raises(ConfigError, match=r"gives bob an adapter, but .* names no such user; add"):
        users_of(wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_any_address_but_loopback_needs_users(host: str) -> None:
    with pytest.raises(ConfigError, match=r"can be reached by others.*--add-user"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, users="users.toml").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_may_go_without(host: str) -> None:
    assert ServerConfig(host=host).host == host


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9000", "localhost:1", "[::1]", "http://127.0.0.1", "a b", "a,b", "a@b", "a:b:c"],
)
def test_a_host_is_an_address_or_a_name_and_nothing_else(host: str) -> None:
    """Such as 127.0.0.1:9000, of which it would not be true that others can reach it."""
    with pytest.raises(ConfigError, match=r"expected an address or a name alone.*--port"):
        ServerConfig(host=host)
    with pytest.raises(ConfigError, match=r"expected host:port|leave http:// out"):
        parse_address(f"[{host}]:8400" if host == "[::1]" else f"{host}:8400")


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("::1", "[::1]:8400"),
        ("::1", "::1:8400"),
        ("fe80::1%lo", "[fe80::1%lo]:8400"),
        ("a_b.c", "a_b.c:8400"),
    ],
)
def test_a_host_may_stand_in_brackets_beside_its_port(host: str, written: str) -> None:
    assert parse_address(written) == (host, 8400)
    assert ServerConfig(host=host, users="users.toml").host == host


def test_three_mistakes_are_free_then_waits_double() -> None:
    patience, now_s, waits = Patience(), 100.0, []
    for _ in range(14):
        patience.failed("a", now_s)
        waits.append(patience.wait_s("a", now_s))
    assert waits == [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert patience.wait_s("a", now_s + 299) == pytest.approx(1)
    assert patience.wait_s("a", now_s + 301) == 0
    assert patience.wait_s("b", now_s) == 0
    patience.succeeded("a")
    patience.failed("a", now_s)
    assert patience.wait_s("a", now_s) == 0


def test_an_address_that_fails_two_thousand_times_still_waits() -> None:
    """2 ** 1024 is no float any more."""
    patience = Patience()
    for _ in range(2000):
        patience.failed("a", 100.0)
    assert patience.wait_s("a", 100.0) == 300


def test_what_is_remembered_is_bounded() -> None:
    patience, rng = Patience(), random.Random(0)
    for i in range(3 * MAX_ADDRESSES):
        patience.failed(str(rng.randrange(2 * MAX_ADDRESSES)), float(i))
    assert len(patience._failures) == MAX_ADDRESSES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_reads_what_its_owner_alone_may_read(tmp_path: Path) -> None:
    path = secret_file(tmp_path, 'alice = "' + "x" * 40 + '"')
    os.chown(path, 12345, 12345)
    assert load_users(path)
