"""The sampling parameters of a chat, as they are set one by one. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from samplerpool.config.arguments import SampleArguments
from samplerpool.config.sampling import ALIASES, PARAMS, sampling_params, unknown_name
from samplerpool.config.settings import settings_of
from samplerpool.data.messages import template_options_of
from samplerpool.errors import InvalidParameter


def chat_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters, checked for a chat.

    Raises:
        InvalidParameter: one does not exist, is out of range, or asks for several answers.
    """
    given = sampling_params(params).given()
    if given.get("num_return_sequences", 1) > 1:
        raise InvalidParameter(
            f"A chat shows one answer a turn, not {given['num_return_sequences']}; leave num_return_sequences out."
        )
    return given


class ShownParam(NamedTuple):
    """One parameter: its value, and who said so (``set here``, ``of the pool``, ``built in``)."""

    name: str
    value: Any
    source: str


class Settings:
    """Parameters that were given at the start or set since.

    Args:
        params: as ``chat_params`` returns them.
        template: keyword arguments for the chat template, by name.
    """

    def __init__(self, params: Mapping[str, Any], template: Mapping[str, Any] | None = None) -> None:
        self.params: dict[str, Any] = dict(params)
        self.template = template_options_of(template)

    def set(self, name: str, text: str) -> tuple[str, Any]:
        """Set one from text, written as on the command line; lists and mappings as YAML or JSON.

        Returns:
            Its full name, and the value.

        Raises:
            InvalidParameter: it does not exist, or cannot have that value; nothing is changed then.
        """
        from samplerpool.config.command_line import value_of  # needs YAML, which takes a while to load

        canonical = self.canonical(name)
        value = value_of(settings_of(SampleArguments)[canonical], [text])
        if value is None:
            raise InvalidParameter(f"{canonical} cannot be null; /unset {canonical} takes it back.")
        self.params = chat_params({**self.params, canonical: value})
        return canonical, self.params[canonical]

    def unset(self, name: str) -> str:
        """Take one back, so that the pool's default holds; returns its full name.

        Raises:
            InvalidParameter: there is no such parameter, or it was not set.
        """
        canonical = self.canonical(name)
        if canonical not in self.params:
            raise InvalidParameter(f"{canonical} is not set here; /params shows what is.")
        del self.params[canonical]
        return canonical

    def set_template(self, name: str, text: str) -> Any:
        """Set an argument for the chat template; what reads as JSON is taken as that, else as text.

        Returns:
            The value.

        Raises:
            InvalidParameter: no template can have an argument of that name.
        """
        if not name.isidentifier():
            raise InvalidParameter(f"{name!r} is no name of a template's argument, as enable_thinking is one.")
        try:
            self.template[name] = json.loads(text)
        except ValueError:
            self.template[name] = text
        return self.template[name]

    @staticmethod
    def canonical(name: str) -> str:
        """A parameter's full name: ``max-tokens`` is ``max_new_tokens``.

        Raises:
            InvalidParameter: there is none of that name.
        """
        underscored = name.replace("-", "_")
        canonical = ALIASES.get(underscored, underscored)
        if canonical not in PARAMS:
            raise InvalidParameter(unknown_name("sampling parameter", name, [*PARAMS, *ALIASES]))
        return canonical

    def shown(self, defaults: Mapping[str, Any]) -> Iterator[ShownParam]:
        """All of them, with the value that holds.

        Args:
            defaults: what the pool was started with.
        """
        for name, spec in PARAMS.items():
            if name in self.params:
                yield ShownParam(name, self.params[name], "set here")
            elif name in defaults:
                yield ShownParam(name, defaults[name], "of the pool")
            else:
                yield ShownParam(name, spec.default, "")
