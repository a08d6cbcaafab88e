"""Render chat templates: Jinja programs that come with a model and are not to be trusted.

A template runs in Jinja's immutable sandbox (no private attributes, no changing of values, no files), with the filters
and functions that chat templates use and no others. Its work is bounded:

- every loop step, macro call and character produced (printed, concatenated, repeated, joined, replaced, padded) is
  charged to one budget, before a large result is built;
- a list or dict pays for all it holds, nested values counted as often as they appear, when it is built;
- `range`, exponents, field widths and the template itself have limits of their own;
- a deadline is looked at with every charge.

What is not charged: operations that only read (comparing, `in`, hashing, slicing, sorting). Each passes over values
whose size was paid for, so they can delay the deadline by a moment, not undo it. Memory is bounded by the budget, not
to the byte.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, wraps
from string import Formatter
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from polyformer.errors import TokenizerError

MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_WORK = 200_000_000  # characters produced plus STEP_COST for each loop step or call
STEP_COST = 200
VALUE_COST = 16  # for each value visited in a list or dict
MAX_RANGE = 100_000
MAX_WIDTH = 1_000
MAX_NUMBER_BITS = 10_000
MAX_SECONDS = 5.0  # of this thread's own work, so a busy machine does not stop an honest template

# fmt: off
KEPT_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
    "wordcount",
)
# fmt: on
# Filters that make a string of whatever they are given.
WRITING_FILTERS = ("capitalize", "e", "escape", "lower", "string", "title", "trim", "upper", "wordcount")

_budget: ContextVar[_Budget | None] = ContextVar("chat_template_budget", default=None)


class _TooMuchWork(TemplateError):
    """The template went over one of its limits."""


class _Budget:
    def __init__(self) -> None:
        self.left = MAX_WORK
        self.deadline = time.thread_time() + MAX_SECONDS

    def charge(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _TooMuchWork("it produces too much text or loops too long")
        if time.thread_time() > self.deadline:
            raise _TooMuchWork(f"it runs longer than {MAX_SECONDS:g} seconds")


def _charge(amount: int) -> None:
    budget = _budget.get()
    if budget is not None:  # None while Jinja folds constants at compile time
        budget.charge(amount)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 1


def _charge_all(value: Any, *, characters: bool) -> None:
    """Pay for every value inside a value, and for the characters of its strings where they are about to be copied."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            _charge(len(item) if characters else VALUE_COST)
        elif isinstance(item, (list, tuple)):
            _charge(VALUE_COST * (len(item) + 1))
            waiting.extend(item)
        elif isinstance(item, dict):
            _charge(VALUE_COST * (len(item) + 1))
            waiting.extend(item.keys())
            waiting.extend(item.values())


def _text(value: Any) -> str:
    _charge_all(value, characters=True)
    return str(value)


def _step(literal_characters: int) -> str:
    """Called at the start of every loop body and macro: pays for the step and for the body's literal text."""
    _charge(STEP_COST + literal_characters)
    return ""


def _concatenate(*values: Any) -> str:
    """Jinja's `~`."""
    return "".join([_text(value) for value in values])


def _built(value: Any) -> Any:
    """Called on every list, tuple and dict that the template writes."""
    _charge_all(value, characters=False)
    return value


def _paid_output(value: Any) -> Any:
    """Jinja calls this on the value of each printed expression, inside set-blocks and macros too."""
    _charge_all(value, characters=True)
    return value


PERCENT_FIELD = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\d+|\*)?(?:\.(\d+|\*))?")


def _check_percent_fields(text: str) -> None:
    for widths in PERCENT_FIELD.findall(text):
        if any(width == "*" or (width and int(width[:9]) > MAX_WIDTH) for width in widths):
            raise _TooMuchWork(f"a field is wider than {MAX_WIDTH} characters")


def _check_brace_fields(text: str) -> None:
    for _, _, form, _ in Formatter().parse(text):
        if form and ("{" in form or any(int(digits[:9]) > MAX_WIDTH for digits in re.findall(r"\d+", form))):
            raise _TooMuchWork(f"a field is wider than {MAX_WIDTH} characters, or its width is computed")


def _paid_method(name: str, text: str, arguments: Sequence[Any]) -> None:
    """Pay for a string method whose result may be much larger than the string."""
    if name in ("format", "format_map"):
        _check_brace_fields(text)
        _charge_all([text, *arguments], characters=True)
    elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        if any(isinstance(argument, int) and argument > MAX_WIDTH for argument in arguments):
            raise _TooMuchWork(f"a field is wider than {MAX_WIDTH} characters")
        _charge(len(text) * (MAX_WIDTH if name == "expandtabs" else 1))
    elif name == "replace" and len(arguments) >= 2:
        _charge(_replaced_size(text, arguments[0], arguments[1]))
    elif name == "join" and arguments:
        _charge(_joined_size(arguments[0], text))
    elif name in ("translate", "encode"):
        raise SecurityError(f"the string method {name} is not available")
    else:
        _charge(len(text))


def _replaced_size(text: str, old: Any, new: Any) -> int:
    count = text.count(str(old)) if str(old) else len(text) + 1
    return len(text) + count * len(str(new))


def _joined_size(values: Sequence[Any], separator: str) -> int:
    return sum(_size(value) for value in values) + len(separator) * len(values)


def _paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Charge a filter for its result, which for the filters kept is about as large as what goes in."""

    @wraps(function)  # keeps Jinja's marks, such as pass_environment
    def paid(*arguments: Any, **options: Any) -> Any:
        if name in WRITING_FILTERS:
            _charge_all(list(arguments), characters=True)
        result = function(*arguments, **options)
        _charge(_size(result))
        return result

    return paid


def _replace_filter(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = _text(text), _text(old), _text(new)
    _charge(_replaced_size(text, old, new))
    return text.replace(old, new, -1 if count is None else count)


def _join_filter(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    items = list(values)
    if attribute is not None:
        items = [item[attribute] if isinstance(item, Mapping) else None for item in items]
    texts = ["" if item is None else _text(item) for item in items]
    _charge(_joined_size(texts, str(separator)))
    return str(separator).join(texts)


def _indent_filter(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    prefix = width if isinstance(width, str) else " " * min(width, MAX_WIDTH + 1)
    if len(prefix) > MAX_WIDTH:
        raise _TooMuchWork(f"an indentation is wider than {MAX_WIDTH} characters")
    _charge(len(text) + len(prefix) * (text.count("\n") + 1))
    lines = text.splitlines() + ([""] if text.endswith("\n") else [])
    indented = [
        line if (number == 0 and not first) or not (line or blank) else prefix + line
        for number, line in enumerate(lines)
    ]
    return "\n".join(indented)


def _format_filter(text: str, *arguments: Any, **fields: Any) -> str:
    _check_percent_fields(text)
    _charge_all([text, *arguments, *fields.values()], characters=True)
    return text % (fields or arguments)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as the field's chat templates expect (Jinja's own filter escapes < > & ')."""
    if isinstance(indent, int) and indent > MAX_WIDTH:
        raise _TooMuchWork(f"an indentation is wider than {MAX_WIDTH} characters")
    _charge_all(value, characters=True)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > MAX_WIDTH:
        raise _TooMuchWork("the date format is too long")
    return datetime.now().strftime(form)


def _dict(*arguments: Any, **entries: Any) -> dict[Any, Any]:
    return _built(dict(*arguments, **entries))


def _range(*bounds: int) -> range:
    result = range(*bounds)
    if len(result) > MAX_RANGE:
        raise _TooMuchWork(f"a range has more than {MAX_RANGE} steps")
    _charge(VALUE_COST * len(result))
    return result


class _SafeNamespace(Namespace):
    """Jinja's namespace without names that start with an underscore, which could stand in for Python's own."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *rest = args
        merged = dict(*rest, **attributes)
        for name in merged:
            _SafeNamespace._check(name)
        Namespace.__init__(self, merged)

    def __setitem__(self, name: str, value: Any) -> None:
        _SafeNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not hold the name {name!r}")


class _GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's words for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's base class declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the budget woven into loops, macros, operators, calls and output."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=_paid_output,
        )
        own = {
            "replace": _replace_filter,
            "join": _join_filter,
            "indent": _indent_filter,
            "format": _format_filter,
        }
        self.filters = {name: own.get(name) or _paid_filter(name, self.filters[name]) for name in KEPT_FILTERS}
        self.filters["tojson"] = _to_json
        self.globals = {
            "range": _range,
            "dict": _dict,
            "namespace": _SafeNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.budget_step = _step
        self.budget_concatenate = _concatenate
        self.budget_built = _built

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for node_type in (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends):
            found = template.find(node_type)
            if found is not None:
                raise TemplateSyntaxError("a chat template may not import or include other files", found.lineno)
        _weave_budget(template)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_percent_fields(left)
            _charge_all([left, right], characters=True)
        elif operator == "+" and isinstance(left, (str, list, tuple)):
            _charge_all([left, right], characters=True)
        elif operator == "*":
            for values, times in ((left, right), (right, left)):
                if isinstance(values, (str, list, tuple)) and isinstance(times, int):
                    _charge(len(values) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 1))
        result = super().call_binop(context, operator, left, right)
        return _built(result) if isinstance(result, (list, tuple)) else result

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        # The sandbox hands out str.format inside a wrapper.
        method = getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            if method.__name__ == "join" and arguments:
                arguments = (list(arguments[0]), *arguments[1:])  # so that a generator can be measured
            _paid_method(method.__name__, owner, (*arguments, *options.values()))
        elif isinstance(owner, (bytes, int)):
            raise SecurityError(f"the method {method.__name__} is not available")
        return super().call(context, function, *arguments, **options)


def _check_bits(bits: int) -> None:
    if bits > MAX_NUMBER_BITS:
        raise _TooMuchWork(f"a number has more than {MAX_NUMBER_BITS} bits")


def _literal_characters(body: Iterable[nodes.Node]) -> int:
    """Characters that the body writes or holds as they stand."""
    found = [text for node in body for text in (node, *node.find_all((nodes.TemplateData, nodes.Const)))]
    values = [getattr(text, "data", None) or getattr(text, "value", None) for text in found]
    return sum(len(value) for value in values if isinstance(value, str))


def _weave_budget(template: nodes.Template) -> None:
    """Rewrite the parsed template: loop bodies and macros start with a paid step; `~`, [], () and {} are paid calls."""
    loops: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
        *template.find_all(nodes.For),
        *template.find_all(nodes.Macro),
        *template.find_all(nodes.CallBlock),
    ]
    for node in loops:
        step = _environment_call("budget_step", [nodes.Const(_literal_characters(node.body))], node.lineno)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
    _rewrite_inside(template)


def _rewrite_inside(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _rewritten(value))
        elif isinstance(value, list):
            value[:] = [_rewritten(item) if isinstance(item, nodes.Node) else item for item in value]


def _rewritten(node: nodes.Node) -> nodes.Node:
    _rewrite_inside(node)
    if isinstance(node, nodes.Concat):
        return _environment_call("budget_concatenate", list(node.nodes), node.lineno)
    stored = isinstance(node, nodes.Tuple) and node.ctx != "load"  # the left side of an assignment
    if isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and not stored:
        return _environment_call("budget_built", [node], node.lineno)
    return node


def _environment_call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(line)
    return call


@dataclass(frozen=True)
class _CompiledTemplate:
    template: Template
    literal_characters: int
    reads_parts: bool  # lists of content parts are read by the template itself


@lru_cache(maxsize=32)
def _compile(source: str) -> _CompiledTemplate:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise TokenizerError(f"the chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters")
    environment = _Environment()
    try:
        parsed = environment.parse(source)
        template = environment.from_string(source)
        return _CompiledTemplate(template, _literal_characters([parsed]), _reads_content_parts(parsed))
    except (TemplateSyntaxError, RecursionError, OverflowError, MemoryError) as error:
        raise _failure(error) from error


def _reads_content_parts(template: nodes.Template) -> bool:
    """True if some loop runs over something called `content`, or the template asks whether a value is a string."""

    def is_content(node: nodes.Node) -> bool:
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        return isinstance(node, nodes.Name) and node.name == "content"

    loops = any(is_content(loop.iter) for loop in template.find_all(nodes.For))
    return loops or any(test.name == "string" for test in template.find_all(nodes.Test))


def _failure(error: BaseException) -> TokenizerError:
    line = getattr(error, "lineno", None)
    place = f" at line {line}" if line else ""
    if isinstance(error, _TooMuchWork):
        what = f"was stopped: {error.message}"
    elif isinstance(error, SecurityError):
        what = f"tried something unsafe: {error}"
    elif isinstance(error, UndefinedError):
        what = f"uses a value that was not given: {error}"
    elif isinstance(error, TemplateSyntaxError):
        what = f"is not valid Jinja: {error.message}"
    elif isinstance(error, RecursionError):
        what = "was stopped: it calls itself too deeply"
    elif isinstance(error, TemplateError):
        what = f"refused the conversation: {error}"
    else:
        what = f"failed: {type(error).__name__}: {error}"
    message = " ".join(f"the chat template{place} {what}".split())
    return TokenizerError(f"{message[:500]}; check the messages, or pass another chat_template")


def _plain(value: Any, where: str) -> Any:
    """A copy of a JSON-like value; nothing else may enter the sandbox, since its methods would be callable there."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{position}]") for position, item in enumerate(value)]
    # Subclasses such as enums are stripped of their methods.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TokenizerError(
        f"{where} is {type(value).__name__}: a chat template takes text, numbers, lists and dicts only"
    )


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A plain copy of a conversation.

    Raises:
        TokenizerError: no messages; a message that is not a dict; a role that is missing or not a string; content
            that is not a string or a list of text parts (None is allowed beside tool_calls).
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TokenizerError('messages must be a list such as [{"role": "user", "content": "Hello"}]')
    if not messages:
        raise TokenizerError("messages is empty: give at least one message")
    checked = []
    for position, message in enumerate(messages):
        where = f"messages[{position}]"
        if not isinstance(message, Mapping):
            raise TokenizerError(f'{where} is {type(message).__name__}, not a dict with "role" and "content"')
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise TokenizerError(f'{where} has no "role": it must be a string such as "system", "user" or "assistant"')
        _check_content(message, where)
        checked.append(_plain(message, where))
    return checked


def _check_content(message: Mapping[str, Any], where: str) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    if not isinstance(content, (list, tuple)):
        given = "missing" if content is None else type(content).__name__
        raise TokenizerError(
            f'{where} ({message["role"]}): "content" is {given}; it must be a string or a list of text parts'
        )
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise TokenizerError(
                f'{where}.content[{number}] is not a text part: it must be {{"type": "text", "text": ...}}'
            )


def _joined_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def render_chat_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text that a chat template makes of a conversation.

    Lists of text parts are joined to one string for templates that do not read parts.

    Args:
        source: the template's Jinja source; it need not be trusted (see the top of this file).
        messages: the conversation; see `checked_messages`.
        add_generation_prompt: a variable most templates read: end with the opening of the assistant's answer.
        variables: further variables, JSON-like: special tokens, tools, documents, the model's own switches.

    Raises:
        TokenizerError: malformed messages or variables; a template that is not valid, raises, or does too much.
    """
    compiled = _compile(source)
    conversation = checked_messages(messages)
    if not compiled.reads_parts:
        conversation = _joined_parts(conversation)
    values = {name: _plain(value, name) for name, value in (variables or {}).items()}
    token = _budget.set(_Budget())
    try:
        _charge(compiled.literal_characters)
        return compiled.template.render(messages=conversation, add_generation_prompt=add_generation_prompt, **values)
    except TokenizerError:
        raise
    except Exception as error:  # a template is somebody's program: it can raise anything
        raise _failure(error) from error
    finally:
        _budget.reset(token)
