"""Conversations through chat templates: what transformers makes of them, or a sentence."""

import pytest

from runtime.model.config import ModelError
from runtime.model.tokenizer import Tokenizer
from tests.conftest import CHAT_TEMPLATE, byte_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
SYSTEM = {"role": "system", "content": "Be brief."}
ALTERNATE = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message.content }}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{{ message.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)


def with_template(template):
    theirs = byte_tokenizer()
    theirs.chat_template = template
    return Tokenizer(theirs, [])


def prompt(template, messages=HELLO, **options):
    tokenizer = with_template(None)
    return tokenizer.decode(tokenizer.chat_prompt(messages, template=template, **options))


@pytest.mark.parametrize(
    ("template", "messages", "sentence"),
    [
        (
            None,
            HELLO,
            "no chat template; give one with --chat-template FILE, or send a prompt as it is: "
            "with --raw, or to /v1/completions",
        ),
        ({"rag": "{{ 1 }}", "tool_use": "{{ 2 }}"}, HELLO, "only chat templates named rag"),
        ("{% for m in messages %}{{ m.content", HELLO, "is broken: line 1: unexpected end"),
        ("\n{% endif %}", HELLO, "is broken: line 2: .*endif"),
        ("{{ 'a' | no_such_filter }}", HELLO, "is broken: line 1: No filter named"),
        (ALTERNATE, HELLO * 2, "refuses this conversation: roles must alternate$"),
        (ALTERNATE, [SYSTEM, *HELLO], "roles must alternate$"),
        ("{{ date.today() }}", HELLO, "refuses this conversation: 'date' is undefined"),
        ("{{ messages[7].content.x }}", HELLO, "refuses this conversation: .*no element 7"),
        ("{{ messages[0].content + 1 }}", HELLO, 'refuses .*can only concatenate str'),
        ("{{ 1 // 0 }}", HELLO, "refuses this conversation: .*zero"),
        ("{{ ''.__class__.__mro__ }}", HELLO, "refuses this conversation: .*unsafe"),
        ("{% set n = namespace() %}{% set n.__html__ = 1 %}", HELLO, "refuses .*'__html__'"),
        ("{% set n = namespace(__html__=1) %}", HELLO, "refuses .*'__html__'"),
        ("{{ messages.append(1) }}", HELLO, "refuses this conversation: .*unsafe"),
        ("{{ range(10**9) | length }}", HELLO, "refuses this conversation: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", HELLO, "maximum recursion"),
        ("{% include 'other' %}", HELLO, "refuses this conversation: no loader"),
        ("{{ raise_exception('a\n' * 500) }}", HELLO, "conversation: [a ]{300}$"),
        (CHAT_TEMPLATE, [], "refuses this conversation: .*empty conversation"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_says_why(template, messages, sentence):
    with pytest.raises(ModelError, match=sentence) as error:
        with_template(template).chat_prompt(messages)
    assert "\n" not in str(error.value)
    if isinstance(template, str):
        with pytest.raises(ModelError, match=sentence):
            with_template(CHAT_TEMPLATE).chat_prompt(messages, template=template)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        {"default": CHAT_TEMPLATE, "tool_use": "{{ raise_exception('no tools') }}"},
        CHAT_TEMPLATE + "{{ strftime_now('%Y') | length }}{{ unknown }}",
        CHAT_TEMPLATE + "{% if tools %}{{ tools | tojson }}{% endif %}{{ eos_token }}",
        CHAT_TEMPLATE + "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ tools is none }}{{ documents is defined }}{{ add_generation_prompt }}{{ functions }}",
        "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
        "{% set n = namespace({'a': 1}, b=2) %}{% set n.a = n.a + n.b %}{{ n.a }}{{ dict(c=3) }}",
        "{{ {'b': '<é>', 'a': [1, none]} | tojson(indent=1, sort_keys=true) }}{{ '<' | tojson }}",
        "  {% if true %}\n  a\n  {% endif %}\n\n{%- for m in messages %}{{ m.tool }}{% endfor %}",
        CHAT_TEMPLATE + "{% for m in messages %}{% break %}{% endfor %}{{ messages | tojson }}",
    ],
)
def test_a_template_writes_what_it_writes_in_transformers(template):
    theirs = byte_tokenizer()
    theirs.chat_template = template
    messages = [SYSTEM, *HELLO, {"role": "assistant", "content": "Hi\n <end>"}, *HELLO]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert Tokenizer(theirs, []).chat_prompt(messages) == expected
    assert (
        with_template(None).chat_prompt(messages, template=with_template(template).chat_template)
        == expected
    )


def test_the_template_is_the_default_one_of_several():
    assert with_template(None).chat_template is None
    assert with_template("{{ 1 }}").chat_template == "{{ 1 }}"
    assert with_template({"default": "{{ 2 }}", "rag": "{{ 3 }}"}).chat_template == "{{ 2 }}"
    assert with_template({"rag": "{{ 3 }}"}).chat_template is None
    assert prompt("{{ messages[0].content }}!") == "Hello!"


def test_thinking_is_switched_where_the_template_can():
    assert prompt(THINKING) == "Hello"
    assert prompt(THINKING, enable_thinking=True) == "Hello"
    assert prompt(THINKING, enable_thinking=False) == "Hello<think></think>"
    for value in (True, False):
        with pytest.raises(ModelError, match="no switch for thinking"):
            prompt(CHAT_TEMPLATE, enable_thinking=value)


def test_contents_are_texts_in_parts_or_none():
    written = "{% for m in messages %}[{{ m.content + '' }}]{% endfor %}"
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert prompt(written, [{"role": "user", "content": parts}]) == "[one\ntwo]"
    assert prompt(written, [{"role": "assistant", "content": None}]) == "[]"
    assert prompt(written, [{"role": "assistant"}, *HELLO]) == "[][Hello]"
    asked = "{% if messages[0].tool_calls is defined %}calls{% endif %}!"
    assert prompt(asked, [{**HELLO[0], "tool_calls": None}]) == "!"
    assert prompt(asked, [{**HELLO[0], "tool_calls": []}]) == "calls!"
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for content in ([*parts, image], 7, [7], image):
        with pytest.raises(ValueError, match="is a text, or parts of type text"):
            prompt(written, [{"role": "user", "content": content}])
    for message in ({"content": "x"}, {"role": 1, "content": "x"}, "x"):
        with pytest.raises(ValueError, match="has a role"):
            prompt(written, [message])
    with pytest.raises(ModelError, match=r"refuses this conversation: .*not JSON"):
        prompt(written, [{**HELLO[0], "image": object()}])


def test_half_a_character_is_no_text():
    tokenizer = with_template(CHAT_TEMPLATE)
    for ask in (
        tokenizer.encode,
        lambda text: tokenizer.chat_prompt([{"role": "user", "content": text}]),
    ):
        with pytest.raises(ValueError, match="lone surrogate"):
            ask("caf\udce9")
