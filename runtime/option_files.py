"""Small files that options name: TOML, and secrets that nobody else may read."""

import stat
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from runtime.options import ConfigError
from runtime.system import others_may_read

MOST_SHOWN = 80  # of a name that may be a whole text
MIN_TOKEN_CHARACTERS = 32  # of a user's secret


def read_toml(text: str, name: str) -> dict[str, Any]:
    """A TOML document; ConfigError with its name if it is none."""
    # The same library under the name it had before Python took it in.
    tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    return table


def is_there(path: Path) -> bool:
    """Whether anything has this name. Raises ConfigError where nobody tells."""
    try:
        return path.exists()
    except OSError as error:  # of a folder that is not ours, or a name that is too long
        sentence = f"{str(path)[:MOST_SHOWN]} cannot be looked at: {error.strerror}"
        raise ConfigError(sentence) from error


def read_secret(path: Path) -> str:
    """The text of a file, or a pipe, that nobody else may read. Raises ConfigError."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            # a device would be read for ever, and nobody should change who may use it
            raise ConfigError(f"{path} is a folder or a device; expected a file")
        if others_may_read(status):
            raise ConfigError(f"others may read {path}; run: chmod 600 {path}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error


def read_token(path: Path) -> str:
    """A user's token in a file of its own. Raises ConfigError.

    What cannot be one is refused here: the server would count it as an attempt to guess.
    """
    token = read_secret(path).strip()
    if len(lines := token.splitlines()) > 1:
        raise ConfigError(f"{path} holds {len(lines)} lines; expected a token and nothing else")
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"{path} holds {len(token)} characters; a token has {MIN_TOKEN_CHARACTERS} or more"
        )
    return token
