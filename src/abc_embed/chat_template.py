"""A checkpoint's chat template, rendered within a budget: it may come from a stranger.

Jinja's sandbox keeps a template from this machine, but not from its time and memory: nested loops,
`'a' * 6000000000` or a value doubled forty times hang it. Here every value that a template makes is
counted before it is used: its characters and elements, and one for each turn of a loop or call of a
macro. When the budget is used up, rendering ends. What could make a huge value in one step is
measured before (`*`, `**`, `join`, `replace`, padding) or is not there at all (`format`, `lipsum`).
What is rendered is what transformers renders.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import jinja2
from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from abc_embed.errors import CheckpointError

MAX_CHARS: Final = 1 << 18
"""Characters of a template; published ones have up to ten thousand."""
BUDGET: Final = 200_000
"""Characters, elements and turns that one rendering may make, besides those of its messages."""
PER_CHAR: Final = 16
"""The same, for each character of the messages."""
_BITS: Final = 4_096  # of a whole number
_INDENT: Final = 16

_FILTERS: Final = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
    *("float", "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "string"),
    *("sum", "title", "trim", "unique", "upper", "wordcount"),
)
_PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_MISSING: Final = frozenset({"format", "format_map", "translate", "to_bytes"})

T = TypeVar("T")
_left: ContextVar[int] = ContextVar("what is left of the budget of this rendering")


class ChatTemplate:
    """A compiled template.

    Raises:
        CheckpointError: it is no template, or too long.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > MAX_CHARS:
            raise CheckpointError(
                f"the chat template has {len(source):,} characters, more than {MAX_CHARS:,}; "
                "use the template that belongs to the model"
            )
        self._template = self._guarded(lambda: _Environment().from_string(source))

    def __reduce__(self) -> tuple[Any, ...]:
        """Compiled code cannot be pickled; it is made anew."""
        return ChatTemplate, (self.source,)

    def render(self, messages: Sequence[Mapping[str, Any]], **values: Any) -> str:
        """The prompt of a chat, generation prompt included.

        Raises:
            CheckpointError: the template fails, or needs more than its budget.
        """
        token = _left.set(BUDGET + PER_CHAR * _size(list(messages), 1 << 40))
        try:
            return self._guarded(
                lambda: self._template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **values,
                )
            )
        finally:
            _left.reset(token)

    @staticmethod
    def _guarded(work: Callable[[], T]) -> T:
        """Whatever a stranger's template raises, as one error."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001  (it may raise anything)
            why = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"the chat template cannot be rendered ({why:.200}); "
                "use the template that belongs to the model"
            ) from None


class _Metered(NodeTransformer):
    """Puts a count around all that makes a value, and into each loop and macro."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, nodes.FilterBlock | nodes.Include | nodes.Import | nodes.FromImport):
            raise jinja2.TemplateError(f"{type(node).__name__} is not known in a chat template")
        if isinstance(node, nodes.AssignBlock) and node.filter is not None:
            raise jinja2.TemplateError("a filtered block is not known in a chat template")
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _counted(cast(nodes.Expr, node.iter))
        if isinstance(node, nodes.CallBlock) and isinstance(node.call.args[0], nodes.Call):
            node.call = node.call.args[0]  # which gets the block as a further argument
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            turn = nodes.ExprStmt(_counted(nodes.Const(None)))
            node.body.insert(0, turn.set_lineno(node.lineno))
        if isinstance(node, nodes.Output):
            node.nodes = [
                part if isinstance(part, nodes.TemplateData) else _counted(part)
                for part in node.nodes
            ]
        makes = (nodes.Concat, nodes.List, nodes.Dict, nodes.Filter, nodes.Call, nodes.BinExpr)
        if isinstance(node, makes) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return _counted(cast(nodes.Expr, node))
        return node


def _counted(value: nodes.Expr) -> nodes.Expr:
    count = nodes.EnvironmentAttribute("count", lineno=value.lineno)
    return nodes.Call(count, [value], [], None, None, lineno=value.lineno)


class _Generation(ext.Extension):
    """`{% generation %}` marks the answer for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  (declared so by the library)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})
    count: Callable[[Any], Any]

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            optimized=False,  # nothing is computed before it is counted
        )
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {"join": _join, "replace": _replace, "tojson": _tojson}
        self.globals.pop("lipsum")
        self.count = _count
        self.globals |= {
            "dict": dict,
            "namespace": _Variables,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        metered = _Metered().visit(source)
        metered.set_environment(self)
        return super()._generate(metered, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise jinja2.TemplateError("the formatting with % is not known in a chat template")
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits + right.bit_length() if operator == "*" else bits * max(right, 1)
            _check(bits <= _BITS)
        elif operator == "*":
            many, times = (left, right) if isinstance(right, int) else (right, left)
            _check(not isinstance(times, int) or _size(many, BUDGET) * times <= BUDGET)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if obj is _count:
            return _count(*args)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if name in _MISSING:
            raise jinja2.TemplateError(f"{name} is not known in a chat template")
        if isinstance(owner, str):
            if name in _PADDING:
                width = max((arg for arg in args if isinstance(arg, int)), default=8)
                _check(width * max(1, owner.count("\t")) <= BUDGET)
            elif name == "join":
                return _join(args[0], owner)
            elif name == "replace":
                return _replace(owner, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


class _Variables(Namespace):
    """What `namespace` makes: values that a loop may set."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.TemplateError(f"the attribute {name!r} cannot be set")
        super().__setitem__(name, value)


def _count(value: Any) -> Any:
    """The value as it is, or as a list where it is made bit by bit."""
    if type(value) is str:
        _spend(len(value) + 1)
        return value
    if isinstance(value, Iterator):
        value = [_count(part) for part in value]
    _spend(1 + _size(value, _left.get()))
    return value


def _spend(amount: int) -> None:
    left = _left.get() - amount
    _left.set(left)
    _check(left >= 0)


def _size(value: Any, limit: int) -> int:
    """Characters and elements of a value, what it holds twice counted twice; not beyond `limit`."""
    total, waiting = 0, [value]
    while waiting and total <= limit:
        part = waiting.pop()
        total += 1
        if isinstance(part, str | bytes):
            total += len(part)
        elif isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, int):
            total += part.bit_length() >> 3
        elif isinstance(part, Iterable) and not isinstance(part, Macro | Iterator | Namespace):
            waiting += list(part)
    return total


def _check(within: bool) -> None:
    if not within:
        raise jinja2.TemplateError("it makes more than its budget of values")


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts = list(value)
    if attribute is not None:
        raise jinja2.TemplateError("join of an attribute is not known in a chat template")
    _spend(sum(_size(part, _left.get()) for part in parts) + len(parts) * len(d))
    return str(d).join(str(part) for part in parts)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    places = text.count(old) if count < 0 else min(count, text.count(old))
    _spend(len(text) + places * len(new))
    return text.replace(old, new, count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: Jinja's own escapes HTML."""
    _check((indent or 0) <= _INDENT and all(len(mark) <= _INDENT for mark in separators or ()))
    _spend(_size(value, _left.get()))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if any(mark.isdigit() for mark in form):
        raise jinja2.TemplateError("a width in a date is not known in a chat template")
    return datetime.now().strftime(form)
