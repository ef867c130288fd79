"""Rendering plugins by name: how prompts are written and answers are read, where a model does not say so itself.

A name stands for a plugin that is built in, registered in this process, or brought by an installed package as an entry
point of the group ``samplerpool.rendering``. ``module:attribute`` is understood as well. Nothing is imported before it
is asked for, and this module itself is free of torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from samplerpool.config.sampling import unknown_name
from samplerpool.errors import InvalidParameter
from samplerpool.rendering.parsing import DEFAULT_TAGS, AnswerTags
from samplerpool.types import Message, ModelInput

ENTRY_POINTS = "samplerpool.rendering"

_BUILT_IN = {
    "chatml": "samplerpool.rendering.chatml:CHATML",
    "qwen3": "samplerpool.rendering.qwen3:QWEN3",
    "qwen3_nothink": "samplerpool.rendering.qwen3:QWEN3_NOTHINK",
}

_registered: dict[str, RenderingPlugin | str] = {}


@dataclass(frozen=True, kw_only=True)
class RenderingPlugin:
    """How messages become a prompt, and an answer a message. Whatever is not given is the model's own way.

    Args:
        chat_template: Jinja text, used instead of the model's own chat template.
        tags: around reasoning and tool calls in answers.
        markers: strings that are structure in the template; kept out of users' text even where the tokenizer does not
            know them as special tokens.
        turn_end: the token that ends an answer, besides the tokenizer's own.
        thinking: whether ``enable_thinking=True`` means anything; if not, it is refused.
        render_messages: instead of a chat template, a function ``(processor, messages, tools, is_generate, **options)``
            that returns a ``ModelInput``. Messages are in the v1 form, each with at most one block of reasoning and one
            of text, before its tool calls; tools are the JSON text of a list, or ``None``; special tokens in both are
            broken already. For generation ``input_ids`` is enough; for training its labels are taken as they are.
        parse_message: a function from an answer's text to the message; goes before everything else that could parse it.

    Raises:
        InvalidParameter: both a chat template and a function to render with.
    """

    chat_template: str | None = None
    tags: AnswerTags = DEFAULT_TAGS
    markers: tuple[str, ...] = ()
    turn_end: str | None = None
    thinking: bool = True
    render_messages: Callable[..., ModelInput] | None = None
    parse_message: Callable[[str], Message] | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None and self.render_messages is not None:
            raise InvalidParameter("A rendering plugin has both chat_template and render_messages; give one of them.")


def register_rendering_plugin(name: str, plugin: RenderingPlugin | str, *, replace: bool = False) -> None:
    """Make a plugin known by a name, for this process.

    Workers are processes of their own. They know it if it is given as ``module:attribute`` (here, or as the template's
    name), or if an installed package brings it as an entry point of the group ``samplerpool.rendering``.

    Args:
        name: for ``template=`` and ``--template``; without a colon.
        plugin: the plugin, or ``module:attribute`` where it is, imported when it is first used.
        replace: take the place of a plugin that was registered under this name before.

    Raises:
        InvalidParameter: a name that is taken or cannot be one, or something else than a plugin.
    """
    if not isinstance(name, str) or not name.strip() or ":" in name:
        raise InvalidParameter(f"A rendering plugin's name must be a word without a colon, not {name!r}.")
    if not isinstance(plugin, RenderingPlugin) and not (isinstance(plugin, str) and _is_path(plugin)):
        raise InvalidParameter(
            f"The rendering plugin {name!r} must be a RenderingPlugin or 'module:attribute', not {plugin!r}."
        )
    if name in _BUILT_IN or (name in _registered and not replace):
        raise InvalidParameter(f"There is a rendering plugin {name!r} already; choose another name.", name=name)
    _registered[name] = plugin


def rendering_plugin(name: str) -> RenderingPlugin:
    """The plugin of this name; imports it where that is still to be done.

    Raises:
        InvalidParameter: no such plugin (says which name is nearest), or it cannot be imported.
    """
    found = _registered.get(name) or portable_name(name)
    return found if isinstance(found, RenderingPlugin) else _imported(name, _BUILT_IN.get(found, found))


def portable_name(name: str) -> str:
    """A name under which another process finds the same plugin. Imports nothing.

    Raises:
        InvalidParameter: no such plugin, or one that only this process knows.
    """
    registered = _registered.get(name)
    if isinstance(registered, str):
        return registered
    if registered is not None:
        raise InvalidParameter(
            f"The rendering plugin {name!r} is registered in this process alone, and workers are others; "
            "register it as 'module:attribute', or give that as the template.",
            name=name,
        )
    if name in _BUILT_IN or _is_path(name):
        return name
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        known = [*_BUILT_IN, *_registered, *installed]
        raise InvalidParameter(unknown_name("rendering plugin (template)", name, known), name=name)
    return installed[name]


def _is_path(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _imported(name: str, path: str) -> RenderingPlugin:
    module, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # foreign code, which may raise anything
        raise InvalidParameter(
            f"The rendering plugin {name!r} cannot be imported ({type(error).__name__}: {error}). Install its package, "
            "or put its folder into PYTHONPATH: workers do not look into the current folder.",
            name=name,
        ) from error
    if not isinstance(found, RenderingPlugin):
        raise InvalidParameter(f"{path} is not a RenderingPlugin, but {type(found).__name__}.", name=name)
    return found
