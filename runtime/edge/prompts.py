"""From what a caller asks to what is sent: ids of the prompt, and how the answer is drawn.

Checks all that the server would refuse, so that it is told before anything is sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from runtime.config import ConfigError, EdgeConfig
from runtime.edge.resume import Transcript
from runtime.sampling import Sampling
from runtime.wire import messages as wire

if TYPE_CHECKING:
    from runtime.model.tokenizer import Tokenizer

MAX_TEMPLATE_FILE_BYTES = 2**20

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]  # ids where it is raw


class Greeted(Protocol):
    """A link, or the way to one: what the server has said when it was greeted."""

    @property
    def welcome(self) -> wire.Welcome | None: ...

    @property
    def template(self) -> wire.Template | None:
        """The target's, where the edge has another one or none."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the target's, as far as they have been told."""


class Prompts:
    """Turns prompts into ids, for any thread; what the target knows is the uplink's welcome."""

    def __init__(self, tokenizer: "Tokenizer", uplink: Greeted):
        self.tokenizer, self._uplink = tokenizer, uplink
        self._encoding = Lock()  # a tokenizer that pads or truncates is one thread's at a time

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the target's that answers may have."""
        return self._uplink.adapters

    def transcript(self, prompt: Prompt, config: EdgeConfig) -> Transcript:
        """The beginning of an answer. Raises ConfigError for what cannot be asked."""
        return Transcript(self.encode(prompt, config), self.sampling(config), stop=config.stop)

    def encode(self, prompt: Prompt, config: EdgeConfig) -> list[int]:
        """Token ids of a prompt, in the chat template unless `raw` was asked for.

        Raises ConfigError where the prompt is empty or no text, the template refuses it, or the
        target does not have one of its tokens.
        """
        try:
            with self._encoding:
                ids = self._ids(prompt, config)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not ids:
            raise ConfigError("the prompt is empty; give at least one character")
        self.check_ids(ids)
        return ids

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of any text, whatever the target makes of them. Raises ConfigError."""
        try:
            with self._encoding:
                return self.tokenizer.encode(text, special)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _ids(self, prompt: Prompt, config: EdgeConfig) -> list[int]:
        if config.raw and isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        ids = [index for index in prompt if type(index) is int] if config.raw else []
        if ids and len(ids) == len(prompt):
            return ids
        return self.tokenizer.chat_prompt(
            _conversation(prompt, config.system),
            template=self._template(config),
            enable_thinking=config.enable_thinking,
            tools=config.tools,
        )

    def sampling(self, config: EdgeConfig) -> Sampling:
        """How the answer is drawn. Raises ConfigError."""
        one_is_left = config.top_p == 0  # the likeliest token, which is drawn as at temperature 0
        return Sampling(
            max_tokens=config.max_tokens,
            temperature=0.0 if one_is_left else config.temperature,
            top_k=config.top_k,
            top_p=1.0 if one_is_left else config.top_p,
            min_p=config.min_p,
            seed=config.seed,
            stop_ids=self.stop_ids(config),
            frequency_penalty=config.frequency_penalty,
            presence_penalty=config.presence_penalty,
            repetition_penalty=config.repetition_penalty,
            logit_bias=self._bias(config),
            logprobs=config.logprobs,
            constraint=config.constraint,
            adapter=config.adapter,
        )

    def _bias(self, config: EdgeConfig) -> tuple[tuple[int, float], ...]:
        rows = self._target_rows
        for index in config.logit_bias:
            if index >= rows:
                raise ConfigError(
                    f"logit_bias= has the token {index}; the target knows only ids below {rows}"
                )
        return tuple(sorted(config.logit_bias.items()))

    def stop_ids(self, config: EdgeConfig) -> tuple[int, ...]:
        """The draft's own and control tokens that `stop` spells; the server adds the target's.

        Raises ConfigError.
        """
        # a control token has no text, but may be what somebody wants to stop at
        wanted = self.tokenizer.stop_ids | self.tokenizer.control_ids(config.stop)
        ids = sorted(index for index in wanted if 0 <= index < self._target_rows)
        if len(ids) > wire.MAX_STOP_IDS:
            raise ConfigError(
                f"{config.draft} and --stop name {len(ids)} stop ids; "
                f"a request carries at most {wire.MAX_STOP_IDS}"
            )
        return tuple(ids)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises ConfigError where the target does not have one of them."""
        rows = self._target_rows
        for index in ids:
            if not 0 <= index < rows:
                spelled = self.tokenizer.token(index)  # empty for an id of nothing
                named = f"{spelled!r} (id {index})" if spelled else f"{index}"
                raise ConfigError(
                    f"the prompt has the token {named}, and the target knows only ids below "
                    f"{rows}; leave it out"
                )

    def chat_template(self, config: EdgeConfig) -> str | None:
        """The chat template that is in effect, None where there is none. Raises ConfigError."""
        return self._template(config) or self.tokenizer.portable_template

    def _template(self, config: EdgeConfig) -> str | None:
        """The chat template to use, None for the draft's own. Raises ConfigError."""
        if config.chat_template:
            return read_template(config.chat_template)
        targets = self._uplink.template
        if targets is None:  # it has the same, or none
            return None
        if not targets.source:
            raise ConfigError(
                "the chat template of the target is too long to be sent; "
                "give --chat-template FILE, or --chat-template draft"
            )
        return targets.source

    @property
    def welcome(self) -> wire.Welcome:
        """What the server holds us to, as it said it last."""
        assert self._uplink.welcome is not None, "prompts before there is a link"
        return self._uplink.welcome

    @property
    def _target_rows(self) -> int:
        welcome = self._uplink.welcome
        return welcome.vocabulary_size if welcome else wire.MAX_VOCABULARY


def _conversation(prompt: Prompt, system: str | None) -> list[Mapping[str, Any]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Iterable):
        raise ValueError(f"the prompt is {prompt!r}; expected a text, or a list of messages")
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *messages]


def read_template(option: str) -> str | None:
    """The text of a chat template's file; None where the option names no file. ConfigError."""
    if option in ("", "draft"):
        return None
    try:
        with open(option, encoding="utf-8-sig") as file:
            template = file.read(MAX_TEMPLATE_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read --chat-template {option}: {reason}") from error
    if len(template) > MAX_TEMPLATE_FILE_BYTES:
        raise ConfigError(f"--chat-template {option} is longer than any template: it is not one")
    if not template.strip():
        raise ConfigError(f"--chat-template {option} is empty; expected a template in Jinja")
    return template
