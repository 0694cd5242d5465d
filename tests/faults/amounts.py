"""How many random cases there are: few in a test run, many where somebody asks for them."""

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Amounts:
    """What was asked for; the seeds are `first_seed` and those after it."""

    schedules: int
    kills: int
    first_seed: int


ASKED = pytest.StashKey[Amounts]()


def amount(config: pytest.Config, name: str, default: int) -> range:
    """The seeds of the random cases of a kind."""
    asked = config.stash.get(ASKED, None)
    if asked is None:
        return range(default)
    return range(asked.first_seed, asked.first_seed + getattr(asked, name))
