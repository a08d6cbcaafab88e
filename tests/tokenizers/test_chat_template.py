"""Chat templates: the text that transformers makes of them, clear errors, and malicious templates that fail cleanly."""

from __future__ import annotations

import enum
import threading
import time
from datetime import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from polyformer.errors import TokenizerError
from polyformer.tokenizers import chat_template
from polyformer.tokenizers.chat_template import checked_messages, render_chat_template

MESSAGES = [
    {"role": "system", "content": '  Be <brief> & "exact".\n'},
    {"role": "user", "content": "Où est l'été? 你好 😀"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": {"where": "Nîmes", "n": [1, 2.5]}}}
        ],
    },
    {"role": "tool", "content": "sunny", "name": "look"},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]

TEMPLATES = {
    "chatml": """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You help.<|im_end|>
{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "tools": """{{- bos_token }}
{%- if tools is not none and tools %}
    {{- "Tools:\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\n" ~ (loop.index|string) ~ "/" ~ tools|length }}
    {%- endfor %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}""",
    "namespace and macro": """{%- macro show(role, text='-') -%}[{{ role|upper }}: {{ text }}]{%- endmacro -%}
{%- set ns = namespace(last='', count=0, texts=[]) -%}
{%- for m in messages if m.content is string -%}
{%- set ns.count = ns.count + 1 -%}{%- set ns.last = m.role -%}
{%- set ns.texts = ns.texts + [m.content] -%}
{{ show(m.role, m.content[:5]) }}{{ loop.cycle('a', 'b') }}
{%- endfor %} {{ ns.count }} {{ ns.last }} {{ ns.texts[-1] }} {{ ns.texts|join('/')|length }}""",
    "loop controls": """{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}
{% if m.content is none %}{% continue %}{% endif %}{{ loop.index0 }}{{ m.content }}{% endfor %}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content or 'call' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}""",
    "filters": """{% for m in messages|selectattr('role', 'equalto', 'user') %}
{{ m.content|replace('a', 'bb')|indent(2) }}
{% endfor %}{{ messages|map(attribute='role')|join(', ') }} {{ messages|map(attribute='role')|unique|list }}
{{ "%s-%05d" % ('x', 42) }} {{ "{}:{:>6}".format('a', 'b') }} {{ {'b': 1, 'a': [1, 2]}|dictsort }}
{{ 'a b c'.split(' ')|reverse|list }} {{ 'xyz'.startswith('x') }} {{ [1, 2, 3]|max }} {{ 'ab' * 3 }}
{{ 7 // 2 }} {{ 2 ** 5 }}
{{ messages[0].missing is defined }} {{ messages[0].missing|default('none') }} {{ range(3)|list }} {{ 'a\nb'|indent }}
{% set a, b = 'x', ('y', 'z') %}{{ a ~ b }} {{ dict(k=1) }} {{ 'n'.join(messages|map(attribute='role')) }}
{{ ' s '.strip() }}{%- for key, value in {'k': 'v'}.items() %}{{ key }}={{ value }}{% endfor %}
{{ tools|tojson }} {{ documents }}""",
    "date": "{{ strftime_now('%Y-%m-%d') }}{{ extra }}{{ eos_token }}",
}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "tools": TOOLS, "documents": None, "extra": {"deep": [1]}}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_renders_as_transformers(name: str, prompt: bool):
    expected, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=prompt, **VARIABLES
    )
    ours = render_chat_template(TEMPLATES[name], MESSAGES, add_generation_prompt=prompt, variables=VARIABLES)
    assert ours == expected[0]
    assert ours.strip()


def test_the_date_is_now():
    assert render_chat_template("{{ strftime_now('%Y') }}", MESSAGES) == datetime.now().strftime("%Y")


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hello", "messages must be a list such as"),
        ({"role": "user", "content": "x"}, "messages must be a list such as"),
        (["hello"], r"messages\[0\] is str, not a dict"),
        ([{"content": "x"}], r'messages\[0\] has no "role"'),
        ([{"role": "", "content": "x"}], r'messages\[0\] has no "role"'),
        ([{"role": 3, "content": "x"}], r'messages\[0\] has no "role"'),
        ([{"role": "user"}], r'messages\[0\] \(user\): "content" is missing'),
        ([{"role": "user", "content": 5}], r'messages\[0\] \(user\): "content" is int'),
        (
            [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "image"}]}],
            r"messages\[1\]\.content\[0\] is not a text part",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "is not a text part"),
        ([{"role": "user", "content": ["x"]}], "is not a text part"),
        ([{"role": "user", "content": "x", "tool": object()}], r"messages\[0\]\.tool is object"),
    ],
)
def test_malformed_messages_are_named(messages: object, message: str):
    with pytest.raises(TokenizerError, match=message):
        render_chat_template("x", messages)


def test_messages_are_copied_to_plain_values():
    class Role(str, enum.Enum):
        USER = "user"

    class Text(str):
        def secret(self) -> str:
            return "leaked"

    original = {"role": Role.USER, "content": Text("hi"), "tags": ("a", 1, True, None, 2.5)}
    copy = checked_messages([original])[0]
    assert copy == {"role": "user", "content": "hi", "tags": ["a", 1, True, None, 2.5]}
    assert type(copy["role"]) is str and type(copy["content"]) is str
    with pytest.raises(TokenizerError, match="secret"):
        render_chat_template("{{ messages[0].content.secret() }}", [original])


PARTS = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
        "{% set parts = m.content %}{{ parts|map(attribute='text')|join }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% set content = m.content %}{{ m.role }}:"
        "{% for p in content %}{{ p['text'] }}{% endfor %}{% endfor %}",
    ],
)
def test_text_parts_are_joined_for_templates_that_do_not_read_them(template: str):
    assert render_chat_template(template, PARTS) == "user:one two"


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "at line 1 is not valid Jinja"),
        ("\n\n{{ 1 + }}", "at line 3 is not valid Jinja"),
        ("{{ raise_exception('roles must\nalternate') }}", "refused the conversation: roles must alternate"),
        ("{{ nothing.at_all }}", "uses a value that was not given: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "failed: TypeError"),
        ("{{ 'a'|nothing }}", "No filter named 'nothing'"),
    ],
)
def test_failures_say_what_and_where(template: str, message: str):
    with pytest.raises(TokenizerError, match=message) as caught:
        render_chat_template(template, MESSAGES)
    assert "\n" not in str(caught.value) and "pass another chat_template" in str(caught.value)


UNSAFE = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by item": "{{ ''['__class__'].__mro__ }}",
    "globals": "{{ messages.__init__.__globals__ }}",
    "function globals": "{{ strftime_now.__globals__.keys() }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "loop": "{% for m in messages %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "map attribute": "{{ messages|map(attribute='__class__')|list|first + 1 }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 'x' %}",
    "namespace from dict": "{% set ns = namespace({'__class__': 1}) %}",
    "change a list": "{{ messages.append(1) }}",
    "change a dict": "{{ messages[0].update(role='x') }}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import system %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'x' %}",
    "environment": "{{ messages|map('attr', '__class__')|list }}",
    "cycler": "{{ cycler('a').__init__.__globals__ }}",
}


@pytest.mark.parametrize("name", sorted(UNSAFE))
def test_ways_out_of_the_sandbox_are_closed(name: str):
    with pytest.raises(TokenizerError):
        render_chat_template(UNSAFE[name], MESSAGES)


GREEDY = {
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop over itself": "{% for i in [messages] recursive %}{{ loop([messages]) }}{% endfor %}",
    "macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro called often": "{% macro f(n) %}{% for i in range(99) %}{{ f(n - 1) if n else '' }}{% endfor %}"
    "{% endmacro %}{{ f(20) }}",
    "repeated text": "{{ 'a' * 10000000000 }}",
    "repeated list": "{{ [1] * 10000000000 }}",
    "repetition from the left": "{{ 10000000000 * 'a' }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling a list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling in a block": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "nested lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "nested tuples": "{% set ns = namespace(a=(1, 2)) %}{% for i in range(60) %}"
    "{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}",
    "nested dicts": "{% set ns = namespace(a={}) %}{% for i in range(60) %}"
    "{% set ns.a = dict(x=ns.a, y=ns.a) %}{% endfor %}",
    "one text many times": "{% set s = 'a' * 1000000 %}{{ [s] * 100000 }}",
    "the same as JSON": "{% set s = 'a' * 1000000 %}{{ ([s] * 100000)|tojson }}",
    "the same as text": "{% set s = 'a' * 1000000 %}{% set t = ([s] * 100000)|string %}",
    "a block of it": "{% set s = 'a' * 1000000 %}{% set y %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    "literal text": "{% for i in range(99999) %}" + "x" * 100000 + "{% endfor %}",
    "a literal": "{% for i in range(99999) %}{{ '" + "x" * 100000 + "' }}{% endfor %}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "product": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "width": "{{ 'a'.center(10000000000) }}",
    "width by name": "{{ 'a'.expandtabs(tabsize=10000000000) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(1000) }}",
    "width in %": "{{ '%10000000000d' % 1 }}",
    "width for %": "{{ '%*d' % (10000000000, 1) }}",
    "width in the filter": "{{ '%10000000000d'|format(1) }}",
    "width in format": "{{ '{:10000000000}'.format(1) }}",
    "width for format": "{{ '{:{}}'.format(1, 10000000000) }}",
    "indent": "{{ 'a\nb'|indent(10000000000) }}",
    "indent of JSON": "{{ [1]|tojson(indent=10000000000) }}",
    "replace": "{% set s = 'a' * 100000 %}{{ s|replace('a', s) }}",
    "replace method": "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "replace nothing": "{% set s = 'a' * 100000 %}{{ s.replace('', s) }}",
    "join": "{% set s = 'a' * 10000000 %}{{ range(100000)|join(s) }}",
    "join method": "{% set s = 'a' * 10000000 %}{{ s.join(range(100000)|map('string')) }}",
    "translate": "{% set s = 'a' * 1000000 %}{{ s.translate({97: s}) }}",
    "bytes": "{{ ''.encode().center(10000000000) }}",
    "integer to bytes": "{{ (5).to_bytes(10000000000, 'big') }}",
    "batch": "{{ [1]|batch(10000000000, 'x')|list }}",
    "lorem ipsum": "{{ lipsum(1000000) }}",
}


@pytest.mark.parametrize("name", sorted(GREEDY))
def test_work_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch):
    # A twentieth of the usual budget keeps the test quick; no limit depends on the other.
    monkeypatch.setattr(chat_template, "MAX_WORK", chat_template.MAX_WORK // 20)
    began = time.monotonic()
    with pytest.raises(TokenizerError) as caught:
        render_chat_template(GREEDY[name], MESSAGES)
    assert "failed:" not in str(caught.value)  # a limit spoke, not an accident
    assert time.monotonic() - began < chat_template.MAX_SECONDS + 5


def test_time_is_bounded_where_work_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    slices = "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}"
    with pytest.raises(TokenizerError, match=r"it runs longer than 0\.2 seconds"):
        render_chat_template(slices, MESSAGES)


def test_a_long_honest_conversation_stays_within_the_budget():
    messages = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " * 500} for n in range(1000)]
    text = render_chat_template(TEMPLATES["tools"], messages, variables=VARIABLES)
    assert len(text) > 1_000_000


def test_a_giant_template_is_refused():
    with pytest.raises(TokenizerError, match="longer than"):
        render_chat_template("x" * 2_000_000, MESSAGES)


def test_threads_have_budgets_of_their_own(monkeypatch: pytest.MonkeyPatch):
    results: list[str] = []

    def work() -> None:
        results.append(render_chat_template("{% for i in range(9999) %}{{ 'a' }}{% endfor %}", MESSAGES))

    monkeypatch.setattr(chat_template, "MAX_WORK", chat_template.MAX_WORK // 50)
    threads = [threading.Thread(target=work) for _ in range(4)]  # together over one budget
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["a" * 9999] * 4
