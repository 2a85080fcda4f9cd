"""Makes templates.json: chats rendered by transformers, over templates that use what published templates use.

    python make_templates.py

Needs: pip install transformers jinja2. The first template is SmolLM2's, word for word as the demo base carries it; the
others are written for this test, each after the manner of a family of published ones.
"""

import json
import pathlib

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEMPLATES = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
        "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Blocks on lines of their own, comments, namespace, trimmed content, alternation enforced.
    "instructions": """{#- after [INST] families #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
""",
    # Tools as JSON, tool calls, previtem/nextitem by index, content parts, `is` tests, split and strip methods.
    "tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and ns.last == -1 %}{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- elif message.content is iterable and message.content is not none %}
        {%- set content %}{% for part in message.content %}{% if part.type == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endset %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'system' and loop.first %}{%- continue %}{%- endif %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- if loop.index0 > ns.last %}{{- '[thought: ' ~ thoughts | upper ~ ']' }}{%- endif %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    # Headers, indented tool JSON, macros, dict methods, defaults, generation tags, lstrip and trim of blocks.
    "headers": """{% macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{% if not date_string is defined %}
    {% set date_string = "26 Jul 2024" %}
{% endif %}
{{ bos_token }}{{ header('system') }}Today: {{ date_string }}
{% if tools is not none %}
    {% for tool in tools %}
{{ tool | tojson(indent=4) }}
    {% endfor %}
{% endif %}
<|eot_id|>
{% for message in messages if message['role'] != 'hidden' %}
    {% if message.get('name') %}
{{ header(message['role'] ~ ':' ~ message.get('name', 'x')) }}
    {% else %}
{{ header(message['role']) }}
    {% endif %}
    {% if message['role'] == 'assistant' %}
        {% generation %}
{{ message['content'] | default('(nothing)', true) }}<|eot_id|>
        {% endgeneration %}
    {% else %}
        {% for key, value in message.items() if key not in ['role', 'content', 'name'] %}
{{ key | title }}={{ value }};
        {% endfor %}
{{ message['content'] if message['content'] is string else message['content'] | tojson }}<|eot_id|>
    {% endif %}
    {% if loop.index == 40 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ header('assistant') }}{% endif %}
""",
}

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "It's <hot> & \"cold\" in Zürich 日本", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}, "days": {"type": "integer", "default": 3, "x": 1.0, "y": 1e-7}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]
USER = {"role": "user", "content": "What is 2 + 2?"}
ASSISTANT = {"role": "assistant", "content": "  It is 4.\n"}
CHATS = {
    "one": [USER],
    "system": [{"role": "system", "content": " Be brief. "}, USER],
    "turns": [USER, ASSISTANT, {"role": "user", "content": "And <b>3 + 3</b> & \"more\"? 日本 🙂\n\n"}],
    "turns with system": [{"role": "system", "content": "S"}, USER, ASSISTANT, {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    "two users": [USER, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b "}]}],
    "thoughts": [USER, {"role": "assistant", "content": "<think>\nold\n</think>\n\nfour"}, USER, {"role": "assistant", "content": "<think>\nnew one\n</think>\n\nFour."}],
    "calls": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "deep": {"a": [1, 2.5, None, True]}}}},
            {"type": "function", "function": {"name": "noop", "arguments": "{}"}}]},
        {"role": "tool", "content": "sunny"}, {"role": "tool", "content": "{\"ok\": true}"},
        {"role": "assistant", "content": "Sunny."},
    ],
    "names": [{"role": "user", "name": "ann", "mood": "good", "age": 7, "ok": True, "none": None, "half": 0.5, "content": "Hi"}, {"role": "assistant", "content": ""}],
    "special text": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n</s><s>"}],
}


def main():
    cases = []
    for template_name, template in TEMPLATES.items():
        for chat_name, chat in CHATS.items():
            for tools in (None, TOOLS):
                for prompt, go_on in ((False, False), (True, False), (False, True)):
                    if (tools or go_on) and template_name in ("smollm2", "instructions") and chat_name not in ("one", "turns", "turns with system"):
                        continue
                    case = {"template": template_name, "chat": chat_name, "tools": tools is not None, "add_generation_prompt": prompt, "continue_final_message": go_on}
                    try:
                        rendered, _ = render_jinja_template(
                            [chat], tools=tools, chat_template=template, add_generation_prompt=prompt, continue_final_message=go_on, **SPECIAL)
                        case["rendered"] = rendered[0]
                    except Exception as error:  # What transformers refuses must be refused.
                        case["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
                    cases.append(case)
    record = {"versions": {"transformers": transformers.__version__}, "special": SPECIAL, "templates": TEMPLATES, "tools": TOOLS, "chats": CHATS}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({**record, "cases": []}, ensure_ascii=False)
    pathlib.Path(__file__).with_name("templates.json").write_text(head.removesuffix("]}") + "\n" + lines + "\n]}\n", encoding="utf-8")
    errors = [case for case in cases if "error" in case]
    print(len(cases), "cases,", len(errors), "refused")
    for case in errors:
        print(case["template"], case["chat"], case["tools"], case["error"])


if __name__ == "__main__":
    main()
