"""An object that an option names as MODULE:NAME, from a module that Python finds."""

import re
import traceback
from importlib import import_module
from typing import Any

from runtime.config import ConfigError

FORM = re.compile(r"\w+(\.\w+)*:\w+")
PAGE = "docs/extend.md"


def named(name: str, option: str) -> Any:
    """The object. Raises ConfigError where there is none, or where its module cannot be run.

    The module is run: the name is for the one who starts the process to give, and nobody else.
    """
    if not FORM.fullmatch(name):
        raise ConfigError(f"{option} is {name!r}; expected MODULE:NAME, as in mine:make ({PAGE})")
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} {name}: Python finds no module {error.name}; is its folder in PYTHONPATH?"
        ) from error
    except Exception as error:
        raise ConfigError(f"{option} {name}: to import {module} {_raised(error)}") from error
    if not hasattr(found, attribute):
        raise ConfigError(f"{option} {name}: the module {module} has no {attribute}")
    return getattr(found, attribute)


def made(name: str, option: str, expected: str, *given: object) -> Any:
    """What the named object makes of `given`; `expected` says what it should be that makes it.

    Raises ConfigError where there is no such object, or where it makes nothing.
    """
    make = named(name, option)
    try:
        return make(*given)
    except Exception as error:
        sentence = f"{option} {name}: to call it {_raised(error)}"
        raise ConfigError(f"{sentence}; expected {expected} ({PAGE})") from error


def unlike(name: str, option: str, found: object, expected: str) -> ConfigError:
    """That something else was made."""
    kind = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
    return ConfigError(f"{option} {name} made {kind}; expected {expected} ({PAGE})")


def _raised(error: Exception) -> str:
    """What was raised and, beyond this file and Python's own importing, where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    is_inside = where.filename != __file__ and not where.filename.startswith("<frozen")
    place = f" at {where.filename}:{where.lineno}" if is_inside else ""
    return f"raises {type(error).__name__}: {error}{place}"
