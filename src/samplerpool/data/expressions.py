"""Jinja over a row's columns: a template that makes a prompt of them, an expression that says whether a row is meant.

Both run in Jinja's sandbox, in which nothing can be changed and nothing private be reached. A column is a variable of
its name, and ``row`` is all of them, for names that are no words: ``row["full text"]``. What a row does not have is an
error when it is used, unless the template asks first (``{{ hint | default("") }}``, ``score is defined and ...``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from samplerpool.errors import InvalidParameter, TemplateError

ALL_COLUMNS = "row"
FILE_MARK = "@"
_TEXT_HINT = " (All values of a CSV or TSV file are texts; {name} | int and {name} | float make numbers of them.)"


def template_text(value: str) -> str:
    """The template that is meant: the text itself, or behind an ``@`` the file that holds it.

    Raises:
        InvalidParameter: the file cannot be read.
    """
    if not value.startswith(FILE_MARK):
        return value
    path = Path(value.removeprefix(FILE_MARK)).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidParameter(f"The prompt template's file {path} cannot be read: {reason}.") from error


def prompt_maker(template: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """A converter: what the template makes of the columns is one user turn; a column ``tools`` keeps its meaning.

    Raises:
        InvalidParameter: it is no Jinja template.
    """
    render = _compiled(f"The prompt template {_shown(template)}", lambda: _environment().from_string(template)).render

    def convert(columns: Mapping[str, Any]) -> Mapping[str, Any]:
        text = _applied("the prompt template", lambda: render(_variables(columns)), columns)
        if not text.strip():
            raise TemplateError("the prompt template makes an empty text of this row.")
        rest = {name: value for name, value in columns.items() if name not in ("messages", "tools")}
        return {**rest, "messages": text, "tools": columns.get("tools")}

    return convert


def predicate(expression: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether columns are such as an expression says. The function raises ``TemplateError`` where that cannot be told.

    Raises:
        InvalidParameter: it is no Jinja expression.
    """
    evaluate = _compiled(
        f"The expression {_shown(expression)}",
        lambda: _environment().compile_expression(expression, undefined_to_none=False),
    )
    return lambda columns: _applied("the expression to select by", lambda: bool(evaluate(_variables(columns))), columns)


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_finalized)


def _finalized(value: Any) -> Any:
    """Nobody means the word None in a prompt: it is a null of a table."""
    if value is None:
        raise TemplateError("a value that is to be written is null; say what to write instead: {{ name or '' }}.")
    return value


def _compiled(what: str, make: Callable[[], Any]) -> Any:
    from jinja2 import TemplateSyntaxError

    try:
        return make()
    except TemplateSyntaxError as error:
        line = f" (line {error.lineno})" if error.lineno > 1 else ""
        raise InvalidParameter(f"{what} is not valid Jinja: {str(error.message).rstrip('.')}{line}.") from error


def _variables(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {ALL_COLUMNS: columns, **columns}


def _applied(what: str, run: Callable[[], Any], columns: Mapping[str, Any]) -> Any:
    """What it gives; whatever it raises is the row's error, for columns may hold anything."""
    try:
        return run()
    except TemplateError as error:
        raise TemplateError(f"{what} cannot be applied: {error.message}") from None
    except Exception as error:
        from jinja2 import UndefinedError

        reason, hint = str(error).rstrip("."), ""
        if isinstance(error, UndefinedError):
            hint = f" This row has: {_names(columns)}."
        elif isinstance(error, TypeError) and any(isinstance(value, str) for value in columns.values()):
            hint = _TEXT_HINT.format(name="name")
        if not isinstance(error, UndefinedError):
            reason = f"{type(error).__name__}: {reason}"
        raise TemplateError(f"{what} cannot be applied: {reason}.{hint}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _names(columns: Mapping[str, Any]) -> str:
    return ", ".join(map(str, columns)) or "nothing"
