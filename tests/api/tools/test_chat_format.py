"""How a model calls and thinks is found in its template, and a template that cannot is told of."""

import pytest

from runtime.api.tools.chat_format import Calls, chat_format
from runtime.model.portable_template import portable
from runtime.model.tokenizer import Tokenizer
from tests.chat_templates import ALL, CHATML, QWEN3

THINK = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("name", "calls", "writes_calls", "thoughts"),
    [
        ("qwen3", Calls.JSON, True, THINK),
        ("qwen3-thinking", Calls.JSON, True, THINK),
        ("qwen3-coder", Calls.XML, True, None),
        ("llama3", Calls.BARE, True, None),
        ("mistral", Calls.LISTED, True, None),
        ("mistral-args", Calls.NAMED, True, None),
        ("smollm3", Calls.JSON, False, THINK),
    ],
)
def test_the_families(name, calls, writes_calls, thoughts):
    for template in (ALL[name], portable(ALL[name], {"bos_token": "<s>", "eos_token": "</s>"})):
        found = chat_format(template)
        assert (found.calls, found.writes_calls, found.thoughts) == (calls, writes_calls, thoughts)
        assert found.refusal == ""


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{{ raise_exception('never') }}",
        "{% broken",
        # it asks for tools and says nothing of them
        "{% if tools %}Be brief.{% endif %}" + CHATML,
        Tokenizer.load("smollm2").portable_template,
    ],
)
def test_a_template_that_leaves_tools_out_says_so(template):
    found = chat_format(template)
    assert found.calls is None
    assert "leaves tools out" in found.refusal
    assert "--chat-template FILE" in found.refusal


def test_calls_in_an_unknown_form_are_refused():
    found = chat_format(QWEN3.replace("<tool_call>", "<call>"))
    assert found.calls is None
    assert "a form that is not known" in found.refusal


def test_a_list_of_tools_is_no_call():
    """Its JSON has a name and parameters, as Llama's calls have."""
    listing = "{% for tool in tools or [] %}{{ tool.function | tojson }}{% endfor %}"
    assert chat_format(listing + CHATML).calls is None


def test_thoughts_of_other_marks():
    template = CHATML + "{# [THINK]...[/THINK] #}"
    assert chat_format(template).thoughts == ("[THINK]", "[/THINK]")
