"""How an option is declared: a field of a frozen dataclass, checked when its object is made.

Which options there are is in config.py, how people give them in arguments.py.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

NO_TEXT = "is not valid UTF-8; check its special characters"
U32_MAX = 2**32 - 1


class ConfigError(ValueError):
    """An option that cannot be used; the message is a sentence for the person who set it."""


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    also: Sequence[str] = (),
    auto: bool = False,
    empty: bool = False,
) -> Any:
    """A dataclass field with what its command-line flag needs to know; `also`: other spellings.

    A number without a maximum is below 2^32, as in the protocol. With `auto`, that word may be
    given in place of 0; with `empty`, a text may be empty and mean something.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    metadata |= {"also": also, "auto": auto, "empty": empty}
    return field(default=default, metadata=metadata)


def flags_of(cls: "type[Checked]") -> "list[Field[Any]]":
    """The options that can be typed; what is left can be given in Python alone."""
    return [item for item in fields(cls) if item.metadata]


@dataclass(frozen=True)
class Checked:
    """The options of a program, each checked when they are put together."""

    def __post_init__(self) -> None:
        kinds = types_of(type(self))
        for item in flags_of(type(self)):
            value = getattr(self, item.name)
            if isinstance(item.default, tuple) and isinstance(value, str):
                # one text is a list of one, as from the environment, which has no lists
                value = (value,) if value else ()
                object.__setattr__(self, item.name, value)
            if value is not None or kinds[item.name] in (int, float):
                _check(item, kinds[item.name], value)


def flag(name: str) -> str:
    """The command-line spelling of an option."""
    return "--" + name.replace("_", "-")


def empty(name: str) -> str:
    """What is wrong where `name` was given as an empty text, and what to do."""
    return f"{name} is empty; say what it is, or leave it out"


def types_of(cls: "type[Checked]") -> dict[str, type]:
    """Each field's type, with `| None` taken off; of a list, that of what is in it."""
    return _types_of(cast(Hashable, cls))


# Kept: options are checked for each answer, and reading hints takes longer than all else of it.
@cache
def _types_of(cls: Any) -> dict[str, type]:
    return {
        name: next((kind for kind in get_args(hint) if kind is not type(None)), hint)
        for name, hint in get_type_hints(cls).items()
    }


def _check(item: "Field[Any]", kind: type, value: Any) -> None:
    """Raises ConfigError where the value is not what the option takes."""
    name = flag(item.name)
    choices, minimum, maximum = (item.metadata[key] for key in ("choices", "minimum", "maximum"))
    is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind in (int, float) and not is_number:
        raise ConfigError(f"{name} is {value!r}; expected {kind.__name__}")
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected True or False")
    # a caller's number would be taken for an open file, where a file is named
    is_one_text = kind is str and not isinstance(item.default, tuple)
    if is_one_text and not isinstance(value, str | Path):
        raise ConfigError(f"{name} is {value!r}; expected a text")
    if is_one_text and not str(value) and item.default and not item.metadata["empty"]:
        raise ConfigError(empty(name))
    if choices and value not in choices:
        allowed = ", ".join(choices)
        raise ConfigError(f"{name} is {value!r}; it takes one of {allowed}")
    # Written so that NaN fails.
    if minimum is not None and not value >= minimum:
        raise ConfigError(f"{name} is {value}; the least it takes is {minimum:g}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; expected a finite number")
    if kind in (int, float) and value > (maximum or U32_MAX):
        raise ConfigError(f"{name} is {value}; the most it takes is {maximum or U32_MAX}")
    for text in value if isinstance(value, tuple) else (value,):
        if kind is str and not is_unicode(str(text)):
            raise ConfigError(f"{name} {NO_TEXT}")


def is_unicode(text: str) -> bool:
    """Whether there is no lone surrogate in it, by which Python spells bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
