"""Chat templates of our own that write as the families' do: turns, tools, calls and thinking."""

QWEN3 = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}You have these tools: <tools>
{%- for tool in tools %}

{{ tool | tojson }}{% endfor %}

</tools> Call one by writing
<tool_call>
{"name": NAME, "arguments": OBJECT}
</tool_call><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}<|im_start|>
{{- message.role }}
{{ message.content }}<|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{% set content = message.content %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if message.reasoning_content and loop.last %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ content }}
{%- for call in message.tool_calls or [] %}{% set call = call.function %}
{%- if content or not loop.first %}

{% endif %}<tool_call>
{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

# as those of 2025 that only think
QWEN3_THINKING = QWEN3[: QWEN3.index("{% if enable_thinking is")] + "{{ '<think>\\n' }}{% endif %}"

QWEN3_CODER = (
    QWEN3.replace(
        '{"name": NAME, "arguments": OBJECT}',
        "<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>",
    )
    .replace(
        '{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}\n',
        "<function={{ call.name }}>\n{% for key, value in call.arguments | items %}"
        "<parameter={{ key }}>\n{{ value if value is string else value | tojson }}\n</parameter>\n"
        "{% endfor %}</function>\n",
    )
    .replace("enable_thinking", "no_such_switch")
    .replace("think>", "no_such_tag>")
)

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}<|start_header_id|>
{{- 'system<|end_header_id|>\\n\\n' }}{{ 'Environment: ipython\\n' if tools }}{{ system }}<|eot_id|>
{%- if tools %}{% set first = messages[0].content | trim %}{% set messages = messages[1:] -%}
<|start_header_id|>user<|end_header_id|>

Answer with {"name": function, "parameters": dictionary} to call one of
{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}{{ first }}<|eot_id|>{% endif %}
{%- for message in messages %}
{%- if 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>
{%- elif message.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ message.content | tojson }}<|eot_id|>
{%- else %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

MISTRAL = """\
{{- bos_token }}{% set ns = namespace(turn=0) %}
{%- for message in messages %}
{%- if message.role in ('user', 'assistant') and not message.tool_calls %}
{%- if (message.role == 'user') != (ns.turn % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- set ns.turn = ns.turn + 1 %}{% endif %}
{%- if message.role == 'user' %}
{%- if tools and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
[INST]{{ message.content }}[/INST]
{%- elif message.tool_calls %}[TOOL_CALLS][
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids of calls have 9 letters') }}{% endif -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "
{{- call.id }}"}{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}
{%- elif message.role == 'assistant' %} {{ message.content | trim }}{{ eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS]{"content": {{ message.content | tojson }}
{{- ', "call_id": "' }}
{{- message.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif loop.first %}[INST]{{ message.content }}[/INST]
{%- else %}{{ raise_exception('only the first message may be of the system') }}{% endif %}
{%- endfor %}"""

# the form of Mistral's newer models
MISTRAL_ARGS = (
    MISTRAL[: MISTRAL.index("[TOOL_CALLS][\n")]
    + "{% for call in message.tool_calls %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
    + "{{ call.function.arguments | tojson }}{% endfor %}{{ eos_token }}\n"
    + MISTRAL[MISTRAL.index("{%- elif message.role == 'assistant' %}") :]
)

# tools have a name of their own there, and calls that were made are left out
SMOLLM3 = """\
<|im_start|>system
Reasoning: {{ '/no_think' if enable_thinking is defined and not enable_thinking else '/think' }}
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}{% if xml_tools %}Tools:
<tools>
{% for tool in xml_tools %}{{ tool | tojson }}
{% endfor %}</tools>
Call them with
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{% endif %}<|im_end|>
{% for message in messages %}
{%- if message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{{ message.content.lstrip('\\n') }}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>
{% endif %}{% endif %}"""

CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

ALL = {
    "qwen3": QWEN3,
    "qwen3-thinking": QWEN3_THINKING,
    "qwen3-coder": QWEN3_CODER,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral-args": MISTRAL_ARGS,
    "smollm3": SMOLLM3,
    "chatml": CHATML,
}

CONTROL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|python_tag|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[CALL_ID]"),
)
