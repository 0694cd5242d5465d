"""Options as they are given: flags, then SPECEDGE_<OPTION>, then a TOML file, then the default.

The argument parsers are generated from the dataclasses of config.py, so an option is written down
once. This module imports nothing heavy: --help must answer at once.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from runtime.config import ConfigError, version
from runtime.option_files import read_toml
from runtime.options import NO_TEXT, U32_MAX, Checked, empty, flag, flags_of, is_unicode, types_of

Config = TypeVar("Config", bound=Checked)
# What options were called, and how they are called now: a setting must not be lost in silence.
RENAMED = {
    "dtype": "weights",
    "max_sessions": "max_requests",
    "max_user_sessions": "max_user_requests",
}
MOST_OPTIONS = 2**20  # characters of a file: a device has no end
# Of a service named specedge, Kubernetes tells every pod as SPECEDGE_PORT=tcp://10.0.0.1:8400.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def parse(cls: type[Config], argv: Sequence[str], env: Mapping[str, str], program: str) -> Config:
    """Build a config from arguments, environment and file. Raises ConfigError.

    --help and --version print and exit with 0.
    """
    if "--version" in argv:
        print(f"specedge {version()}")
        raise SystemExit(0)
    parser = _parser(cls, program)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(_unknown(unknown[0], cls, flag))
    given = {name: value for name, value in vars(known).items() if value is not None}
    path = given.pop("config", None) or env.get("SPECEDGE_CONFIG")
    # What is overridden is not read: it may be somebody else's.
    given = _from_environment(cls, env, without=given) | given
    values = _from_file(cls, Path(path), without=given) if path else {}
    return cls(**(values | given))


def _variable(name: str) -> str:
    return f"SPECEDGE_{name.upper()}"


def _renamed(cls: "type[Checked]", spelled: Callable[[str], str]) -> dict[str, str]:
    """The new name of an option of this process by the old one."""
    names = {item.name for item in flags_of(cls)}
    return {spelled(old): spelled(new) for old, new in RENAMED.items() if new in names}


class Parser(argparse.ArgumentParser):
    """Takes nothing that is given empty, as by a script's variable that was never set: --tls "$PIN"
    must not mean no TLS. Nor what is no text. `may_be_empty` has the options of which it means
    something."""

    may_be_empty: Collection[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which calls it for every way to parse."""
        given, option = sys.argv[1:] if args is None else args, "an argument"
        for argument in given:
            name, equals, value = argument.partition("=")
            is_option = name.startswith("--")
            option = name if is_option else option
            is_empty = not argument or (is_option and equals and not value)
            if is_empty and option not in self.may_be_empty:
                self.error(empty(option))
            if not is_unicode(argument):
                self.error(f"{option} {NO_TEXT}")
        return super().parse_known_args(given, namespace)


def number(kind: type, least: float, most: float = U32_MAX) -> Callable[[str], Any]:
    """Reads a number of an option: what cannot be is told before minutes are spent on it."""

    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:  # written so that NaN is told, too
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    read.__name__ = kind.__name__  # what argparse calls it where the text is no number
    return read


def appendable(name: str) -> Path:
    """A file that can be added to: told at the start, not once everything was measured."""
    path = Path(name)
    try:
        place = path if path.exists() else path.parent
        may_write = not path.is_dir() and place.exists() and os.access(place, os.W_OK)
    except OSError:
        may_write = False
    if not may_write:
        raise argparse.ArgumentTypeError(
            f"cannot write {name}; name a file in a folder that is there"
        )
    return path


class _Parser(Parser):
    """Says what is wrong in one sentence instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(cls: type[Config], program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description=cls.__doc__,
        allow_abbrev=False,
        epilog="Every option may also be set as SPECEDGE_<OPTION> or in a TOML file (--config).",
    )
    parser.may_be_empty = [flag(item.name) for item in flags_of(cls) if item.metadata["empty"]]
    kinds = _readers(cls)
    parser.add_argument("--version", action="store_true", default=None, help="print it, and end")
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options")
    for item in flags_of(cls):
        default = "" if item.default in (None, (), MISSING) else f" (default: {item.default})"
        shared = {"default": None, "help": item.metadata["help"] + default}
        names, kind = (flag(item.name), *item.metadata["also"]), kinds[item.name]
        if kind is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, **shared)
        else:
            parser.add_argument(
                *names,
                action="append" if isinstance(item.default, tuple) else "store",
                type=kind,
                choices=item.metadata["choices"] or None,
                metavar=None if item.metadata["choices"] else item.name.split("_")[-1].upper(),
                **shared,
            )
    return parser


def _readers(cls: "type[Checked]") -> dict[str, Any]:
    """What makes each field's value of a text: its type, that also knows the word auto for 0."""
    kinds, items = types_of(cls), flags_of(cls)
    automatic = {item.name for item in items if item.metadata["auto"]}
    readers = {item.name: kinds[item.name] for item in items}
    return {name: _or_auto(kind) if name in automatic else kind for name, kind in readers.items()}


def _or_auto(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return kind(0) if text == "auto" else kind(text)

    read.__name__ = kind.__name__  # what a sentence about a wrong text calls it
    return read


def _from_environment(
    cls: type[Config], env: Mapping[str, str], without: Collection[str]
) -> dict[str, Any]:
    for old, new in _renamed(cls, _variable).items():
        if old in env and new not in env:
            raise ConfigError(f"{old} is called {new} now")
    values = {}
    for option_name, kind in _readers(cls).items():
        name = _variable(option_name)
        if name not in env or option_name in without:
            continue
        if kind is not int or not SERVICE_LINK.match(env[name]):
            values[option_name] = _convert(kind, env[name], name)
    return values


def _from_file(cls: type[Config], path: Path, without: Collection[str]) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_OPTIONS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"cannot read --config {path}: {reason}") from error
    if len(text) > MOST_OPTIONS:
        raise ConfigError(f"--config {path} is longer than any options; expected a file of TOML")
    table = read_toml(text, f"--config {path}")
    return _values(cls, table, str(path), without)


def from_table(cls: type[Config], table: Mapping[str, Any], where: str) -> Config:
    """Build a config from options by name, as texts or values of TOML. Raises ConfigError."""
    return cls(**_values(cls, table, where))


def _values(
    cls: type[Config], table: Mapping[str, Any], where: str, without: Collection[str] = ()
) -> dict[str, Any]:
    known, kinds = {item.name: item for item in flags_of(cls)}, _readers(cls)
    for name in table:
        if name not in known:
            raise ConfigError(f"{where}: " + _unknown(name, cls, str))
    return {
        name: _from_toml(known[name], kinds[name], value, f"{name} in {where}")
        for name, value in table.items()
        if name not in without
    }


def _from_toml(item: "Field[Any]", kind: Any, value: Any, name: str) -> Any:
    several = isinstance(value, list) and isinstance(item.default, tuple)
    parts = value if several else [value]
    for part in parts:
        if isinstance(part, list | dict):
            raise ConfigError(f"{name} is {value!r}; expected {kind.__name__}")
    read = tuple(_convert(kind, str(part), name) for part in parts)
    return read if several else read[0]


def _convert(kind: Any, text: str, name: str) -> Any:
    """Text to the field's type. Raises ConfigError naming where the text came from."""
    if kind is bool:
        spellings = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in spellings:
            raise ConfigError(f"{name} is {text!r}; expected true or false")
        return spellings[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; expected {kind.__name__}") from error


def _unknown(given: str, cls: "type[Checked]", spelled: Callable[[str], str]) -> str:
    name, known = given.split("=")[0], [spelled(item.name) for item in flags_of(cls)]
    if (new := _renamed(cls, spelled).get(name)) is not None:
        return f"option {name} is called {new} now"
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else "; see --help")
