"""An object that an option names as MODULE:NAME, from a module that Python finds."""

import re
from importlib import import_module
from typing import Any

from runtime.config import ConfigError

FORM = re.compile(r"\w+(\.\w+)*:\w+")


def named(name: str, option: str) -> Any:
    """The object. Raises ConfigError where there is none; what the module itself raises, it does.

    The module is run: the name is for the one who starts the process to give, and nobody else.
    """
    if not FORM.fullmatch(name):
        raise ConfigError(f"{option} is {name!r}; expected MODULE:NAME, as in mine:Followers")
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} {name}: Python finds no module {error.name}; is its folder in PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{option} {name}: the module {module} has no {attribute}") from error
