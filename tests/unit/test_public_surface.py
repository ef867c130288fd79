"""What the package promises: its names, what their docstrings say, and its types."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, is_typeddict

import pytest

import samplerpool
from samplerpool import errors

PUBLIC = [
    "AnswerTags",
    "AsyncSampler",
    "BaseSampler",
    "Content",
    "DataArguments",
    "DataEngine",
    "Message",
    "ModelArguments",
    "ModelEngine",
    "ModelInput",
    "PoolArguments",
    "Renderer",
    "RenderingPlugin",
    "Sample",
    "SampleArguments",
    "SamplerPoolError",
    "SyncSampler",
    "ToolCall",
    "get_args",
    "register_converter",
    "register_rendering_plugin",
    "run_chat",
]
ERRORS = [error for error in vars(errors).values() if inspect.isclass(error) and issubclass(error, Exception)]
OBVIOUS = {"self", "cls"}


def functions_of(name: str) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """The functions that a public name brings: what to call each, and the docstring that has to tell of it."""
    public = getattr(samplerpool, name)
    if inspect.isfunction(public):
        yield name, public, public.__doc__ or ""
        return
    if is_typeddict(public) or issubclass(public, Exception):
        return
    for attribute, value in vars(public).items():
        function = (
            inspect.unwrap(getattr(value, "__func__", value)) if callable(value) or hasattr(value, "__func__") else None
        )
        if attribute == "__init__" and function is not None and not dataclasses.is_dataclass(public):
            yield f"{name}()", function, public.__doc__ or ""
        elif not attribute.startswith("_") and inspect.isfunction(function):
            yield f"{name}.{attribute}", function, function.__doc__ or ""


FUNCTIONS = {title: (function, text) for name in PUBLIC for title, function, text in functions_of(name)}


def test_the_public_names_are_these() -> None:
    assert samplerpool.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(samplerpool, name).__name__ == name
        assert name in dir(samplerpool)
    with pytest.raises(AttributeError, match="nothing"):
        _ = samplerpool.nothing  # type: ignore[attr-defined]


def test_star_imports_bring_these_and_no_more() -> None:
    names: dict[str, Any] = {}
    exec("from samplerpool import *", names)
    assert set(names) - {"__builtins__"} == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    public = getattr(samplerpool, name)
    own = inspect.getdoc(public) or ""
    assert own.split("\n\n")[0].endswith((".", ":")), own
    if not dataclasses.is_dataclass(public) and not is_typeddict(public):
        return
    missing = [field for field in public.__annotations__ if field not in own]
    assert not missing, f"fields of {name} that its docstring does not name: {missing}"


@pytest.mark.parametrize("title", FUNCTIONS)
def test_every_public_function_tells_of_its_arguments_results_and_errors(title: str) -> None:
    function, text = FUNCTIONS[title]
    assert text.strip(), f"{title} has no docstring"
    parameters = [name for name in inspect.signature(function).parameters if name not in OBVIOUS]
    untold = [name for name in parameters if name not in text]
    assert not untold, f"{title}: its docstring does not say what {untold} are"
    if raises(function):
        assert "Raises:" in text, f"{title} raises, and its docstring does not say what"
    returned = inspect.signature(function).return_annotation
    if returned not in ("None", inspect.Signature.empty) and parameters and not title.endswith("()"):
        assert "Returns:" in text or "Yields:" in text, f"{title}: its docstring does not say what comes back"


def raises(function: Callable[..., Any]) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_says_when_it_comes_and_stands_in_the_tree(error: type[Exception]) -> None:
    assert (error.__doc__ or "").strip()
    assert error.__name__ in (errors.__doc__ or "")
    assert issubclass(error, samplerpool.SamplerPoolError)


def test_types_come_with_the_package() -> None:
    root = Path(samplerpool.__file__).parent
    assert (root / "py.typed").is_file()
    project = tomllib.loads((root.parents[1] / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["samplerpool"]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(samplerpool.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(PUBLIC)
    for name, module in seen.items():
        assert getattr(importlib.import_module(str(module)), name) is getattr(samplerpool, name)
