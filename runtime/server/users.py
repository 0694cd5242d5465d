"""Who may use a server: names and their tokens in a file, and patience with wrong ones.

A token is a secret of at least 32 characters that the server and one user share. The file is TOML,
one `name = "token"` a line, and readable by its owner alone. Knows no sockets; time is an argument.
"""

import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from runtime.config import ConfigError, ServerConfig
from runtime.option_files import MIN_TOKEN_CHARACTERS, is_there, read_secret, read_toml

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
# After the first wrong tokens an address waits 1, 2, 4, ... seconds, at most this long.
FREE_FAILURES = 3
LONGEST_WAIT_S = 300.0
MAX_ADDRESSES = 4096


def users_of(config: ServerConfig) -> Mapping[str, bytes] | None:
    """Tokens by name, of the file that is given; None where nobody is asked for one.

    Raises ConfigError, also where an adapter is given to somebody whom the file does not name.
    """
    if not config.users:
        return None
    users = load_users(Path(config.users))
    for user in config.adapters_of_users:
        if user not in users:
            raise ConfigError(
                f"--user-adapter gives {user} an adapter, but {config.users} names no such user; "
                f"add one with --add-user {user}"
            )
    return users


def load_users(path: Path) -> Mapping[str, bytes]:
    """Tokens by name, one at least. Raises ConfigError."""
    users = _parsed(read_secret(path), path)
    if not users:
        raise ConfigError(f"{path} names no users; add one with --add-user NAME")
    return users


def _parsed(text: str, path: Path) -> Mapping[str, bytes]:
    table = read_toml(text, str(path))
    for name, token in table.items():
        _check_name(name)
        if not isinstance(token, str) or len(token) < MIN_TOKEN_CHARACTERS:
            raise ConfigError(
                f"the token of {name} in {path} is too short; "
                f"expected a text of at least {MIN_TOKEN_CHARACTERS} characters"
            )
    return {name: token.encode() for name, token in table.items()}


def add_user(path: Path, name: str) -> str:
    """Append a user with a new token, making the file if there is none; returns the token.

    Raises ConfigError.
    """
    _check_name(name)
    text = read_secret(path) if is_there(path) else ""
    if name in _parsed(text, path):
        raise ConfigError(f"{path} has a user {name} already; for a new token remove that line")
    token = secrets.token_hex(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # an editor need not have ended the line before it
            file.write("\n" * (text[-1:] not in ("", "\n")) + f'"{name}" = "{token}"\n')
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return token


class Patience:
    """How long an address must wait after wrong tokens; what it remembers is bounded."""

    def __init__(self) -> None:
        # address -> (failures, time until which it must wait), oldest first
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds before this address may try again; 0 if it may now."""
        return max(0.0, self._failures.get(address, (0, 0.0))[1] - now_s)

    def failed(self, address: str, now_s: float) -> None:
        """One more wrong token from there."""
        failures = self._failures.pop(address, (0, 0.0))[0] + 1
        # so many doublings are past the longest wait; after a thousand there is no such number
        doublings = min(failures - FREE_FAILURES - 1, 30)
        wait_s = min(2.0**doublings, LONGEST_WAIT_S)
        self._failures[address] = failures, now_s + (wait_s if failures > FREE_FAILURES else 0.0)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """A right token from there: the past is forgotten."""
        self._failures.pop(address, None)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a user; expected 1 to 64 letters, digits, . _ @ or -"
        )
