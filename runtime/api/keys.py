"""API keys: whose a key is, found in the same time whoever asks."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from runtime.api.backend import UnknownKey
from runtime.config import ConfigError


class Keys:
    """Names by their keys, which are users' tokens."""

    def __init__(self, tokens: Mapping[str, bytes]) -> None:
        """Raises ConfigError where two users have one token: it would not say who asks."""
        # hashes are equally long, so that not even a key's length is told by the time it takes
        self._hashes = {name: hashlib.sha256(token).digest() for name, token in tokens.items()}
        names: dict[bytes, str] = {}
        for name, token in tokens.items():
            if (other := names.setdefault(token, name)) != name:
                raise ConfigError(
                    f"users {other} and {name} have the same token, and an API key has to say who "
                    "asks; give each of them one of their own"
                )

    def name_of(self, key: str | None) -> str:
        """Raises UnknownKey. Every key is compared with all of them."""
        if key is None:
            raise UnknownKey("this endpoint needs an API key: send Authorization: Bearer KEY")
        given, found = hashlib.sha256(key.encode()).digest(), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        if found is None:
            raise UnknownKey("this API key is not right")
        return found
