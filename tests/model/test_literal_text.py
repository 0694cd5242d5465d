"""What people write never becomes a control token, whatever they write."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.model.literal_text import Spellings
from runtime.model.tokenizer import Tokenizer
from tests.chat_templates import ALL, CONTROL
from tests.conftest import byte_tokenizer

NESTED = "<|im_<|im_end|>"
THEIRS = byte_tokenizer((*CONTROL, NESTED))
THEIRS.bos_token, THEIRS.eos_token = "<s>", "</s>"
OURS = Tokenizer(THEIRS, [])
SPELLED = [*CONTROL, NESTED, "<|im_<|im_<|im_end|>", "</think>", "\ufdd0", "\n", " ", "<", "é", "|"]
texts = st.lists(st.sampled_from(SPELLED), max_size=6).map("".join)


def whole(ids):
    """The text of ids, control tokens as they are spelled."""
    return THEIRS.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def control(ids):
    return [index for index in ids if index in OURS.token_bytes.control]


def harmless(text):
    """The same text, but that no control token is spelled in it."""
    return re.sub("[<\\[]", "(", text)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=30, deadline=None)
@given(system=texts, question=texts, answer=texts, more=texts, description=texts)
def test_text_stays_text(name, system, question, answer, more, description):

    def conversation(written):
        roles = ("system", "user", "assistant", "user")
        said = zip(roles, (system, question, answer, more), strict=True)
        tool = {"function": {"name": "f", "description": written(description)}, "type": "function"}
        return [{"role": role, "content": written(text)} for role, text in said], [tool]

    messages, tools = conversation(str)
    ids = OURS.chat_prompt(messages, tools=tools, template=ALL[name])
    expected = THEIRS.apply_chat_template(
        messages,
        tools=tools,
        xml_tools=tools,
        chat_template=ALL[name],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert whole(ids) == expected
    messages, tools = conversation(harmless)
    assert control(ids) == control(OURS.chat_prompt(messages, tools=tools, template=ALL[name]))


def test_calls_and_their_answers_stay_text():
    call = {"name": "f", "arguments": {"<|im_end|>": ["<|im_start|>", {"a": "[INST]"}]}}
    calls = [{"id": "a" * 9, "type": "function", "function": call}]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a" * 9, "content": "<|eot_id|>[/TOOL_RESULTS]"},
    ]
    for name, template in ALL.items():
        ids = OURS.chat_prompt(messages, template=template)
        text = whole(ids)
        spelled = [name for name in CONTROL if name in text]
        found = [OURS.token(index) for index in control(ids)]
        assert "<|eot_id|>" in spelled, name
        assert ("[/TOOL_RESULTS]" in found) == name.startswith("mistral")
        assert ("<|eot_id|>" in found) == (name == "llama3")
        # those that the template writes end a line
        assert found.count("<|im_end|>") == text.count("<|im_end|>\n")


def test_ordinary_conversations_are_encoded_as_ever():
    messages = [{"role": "user", "content": "a < b, [x] and <|im_end >"}]
    for template in ALL.values():
        text = whole(OURS.chat_prompt(messages, template=template))
        assert OURS.chat_prompt(messages, template=template) == list(
            THEIRS.encode(text, add_special_tokens=False)
        )


def test_every_spelling_is_cut_and_nothing_else():
    spellings = Spellings(["<a>", "<a><b>", "a", "<b", "[x]"])
    value = {"<a>k": ["<a><b>", {"t": "[x]<a"}, 7, None, True], "n": "a"}
    assert spellings.marked(value) == (
        {"<\ufdd0a>k": ["<\ufdd0a><\ufdd0b>", {"t": "[\ufdd0x]<a"}, 7, None, True], "n": "a"},
        "\ufdd0",
    )
    assert spellings.marked("\ufdd0<a>\ufdd2") == ("\ufdd0<\ufdd1a>\ufdd2", "\ufdd1")
    assert Spellings([]).marked("<a>") == ("<a>", "\ufdd0")
    every = "".join(chr(code) for code in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)))
    with pytest.raises(ValueError, match="every private character"):
        spellings.marked(every)
