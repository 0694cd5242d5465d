"""From the text of a constraint to a matcher: what cannot be enforced is refused in a sentence."""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable

from llguidance import LLMatcher, LLParserLimits, regex_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from runtime.grammar import schema
from runtime.grammar.matcher import Matcher
from runtime.grammar.tokens import Tokens

MOST_COMPILED = 64  # kept for the next answer with the same constraint
# llguidance works through nested rules by recursion: what fits a constraint fits this stack.
STACK_BYTES = 128 << 20
LIMITS = LLParserLimits(
    max_lexer_states=10_000,  # of 1 to 2 kB each, for each answer
    initial_lexer_fuel=100_000,  # with a million, `a?` written 30,000 times takes half a minute
    verbose_errors=False,
)
# No token is forced because a text would be split so: all that spell an allowed text are allowed.
NOT_FORCED = '\n%llguidance {"no_forcing": true}\n'
MOST_REASON = 300  # characters of what llguidance says


class Grammars:
    """The constraints of one vocabulary, compiled. Of any thread; a call may take seconds."""

    def __init__(self, load_tokens: Callable[[], Tokens]):
        """load_tokens: called once there is a constraint; may raise."""
        self._load_tokens = load_tokens
        self._tokens: Tokens | None = None
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        # one is compiled at a time; who wants one that is there does not wait for it
        self._compiling, self._looking = threading.Lock(), threading.Lock()

    def matcher(self, kind: str, text: str) -> Matcher:
        """A matcher in front of an answer.

        kind   "json_schema", "regex" or "lark"
        text   the JSON of a schema, a regular expression that the whole answer matches, or a
               grammar in llguidance's form of Lark

        Raises ValueError, with the keyword's name, for what cannot be enforced.
        """
        compiled = self._known(kind, text)
        if compiled is None:
            with self._compiling:
                compiled = self._known(kind, text) or self._add(kind, text)
        assert self._tokens is not None, "a grammar was compiled for no vocabulary"
        return Matcher(compiled, self._tokens)

    def _known(self, kind: str, text: str) -> LLMatcher | None:
        with self._looking:
            compiled = self._compiled.get((kind, text))
            if compiled is not None:
                self._compiled.move_to_end((kind, text))
            return compiled

    def _add(self, kind: str, text: str) -> LLMatcher:
        if self._tokens is None:
            self._tokens = self._load_tokens()
        compiled = _compiled(kind, text, self._tokens)
        with self._looking:
            self._compiled[kind, text] = compiled
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        return compiled


def check(kind: str, text: str) -> None:
    """Raises ValueError, as `Grammars.matcher`, for what no vocabulary could be held to."""
    grammar = LLMatcher.grammar_from_lark(_lark(kind, text) + NOT_FORCED)
    errors: list[str] = []

    def validate() -> None:
        errors.append(LLMatcher.validate_grammar(grammar, limits=LIMITS))

    _in_deep_stack(validate)
    if errors[0]:
        raise ValueError(f"the {_NAMES[kind]} cannot be enforced: {_reason(kind, errors[0])}")


def _compiled(kind: str, text: str, tokens: Tokens) -> LLMatcher:
    """The grammar in front of a text, with its first mask done. Raises ValueError."""
    grammar = LLMatcher.grammar_from_lark(_lark(kind, text) + NOT_FORCED)
    made: list[LLMatcher] = []

    def compile_it() -> None:
        matcher = LLMatcher(tokens.llguidance, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            fill_next_token_bitmask(matcher, allocate_token_bitmask(1, tokens.size))
        made.append(matcher)

    _in_deep_stack(compile_it)
    if made[0].is_error():
        reason = _reason(kind, made[0].get_error())
        raise ValueError(f"the {_NAMES[kind]} cannot be enforced: {reason}")
    return made[0]


_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}


def _lark(kind: str, text: str) -> str:
    """The constraint as a grammar in Lark. Raises ValueError."""
    match kind:
        case "json_schema":
            return f"start: %json {_written(schema.ready(schema.parsed(text)))}"
        case "regex":
            return f"start: /{regex_to_lark(text, use_ascii='')}/"
        case "lark":
            return _with_options(text)
    raise ValueError(f"a constraint cannot be of the kind {kind!r}; there are {', '.join(_NAMES)}")


def _written(json_schema: object) -> str:
    try:
        return json.dumps(json_schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the JSON schema cannot be enforced: {error}") from None


def _with_options(text: str) -> str:
    """A grammar with its JSON schemas made ready, but for those that have options of their own."""
    pieces, done, decoder = [], 0, json.JSONDecoder()
    for found in re.finditer(r"%json\s*", text):
        try:
            part, end = decoder.raw_decode(text, found.end())
        except RecursionError:
            raise ValueError("the grammar has a JSON schema that is nested too deeply") from None
        except ValueError:
            continue  # in a comment, or llguidance finds it as well
        if isinstance(part, dict) and schema.OPTIONS in part:
            schema.check(part)
        else:
            pieces += [text[done : found.end()], _written(schema.ready(part))]
            done = end
    return "".join([*pieces, text[done:]])


def _in_deep_stack(call: Callable[[], None]) -> None:
    """Run in a thread of its own, with a stack for deep recursion."""
    before = threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=call, name="grammar", daemon=True)
    try:
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()


_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")
_FORMAT = re.compile(r"Unknown format: (.*)")


def _reason(kind: str, error: str) -> str:
    """What llguidance says as one clause, with the keyword's name."""
    # behind the place and its last heading, in front of the grammar's lines
    told = re.split(r"\n\s+\d+ \| |\n<", error)[0]
    told = told.replace("failed to compile JSON schema: ", "")
    told = re.sub(r"^(?:at )?(\d+)\(\d+\): ", "" if kind != "lark" else r"line \1: ", told)
    if keys := _KEYS.search(told):
        return f"there is no way to hold an answer to {keys[1]}"
    if named := _FORMAT.search(told):
        return f'there is no way to hold an answer to "format": "{named[1]}"'
    if "oneOf" in told:
        return 'the alternatives of "oneOf" may overlap; say "anyOf", or let a property differ'
    if "NoExtension" in told:
        return "no answer fits it"
    return " ".join(told.split())[:MOST_REASON]
