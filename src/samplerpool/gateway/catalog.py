"""The models that requests may name: the pool's, and its adapters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.gateway.problems import Problem

OWNER = "samplerpool"


class Catalog:
    """The pool's model and its adapters.

    Args:
        model: the model's name.
        created: since when it is there, in seconds since 1970.
        adapters: their names.
        max_model_len: most tokens of prompt and answer together; 0 where that is not known.
    """

    def __init__(self, model: str, created: int, adapters: Sequence[str] = (), max_model_len: int = 0) -> None:
        self.model = model
        self.adapters = tuple(adapters)
        self._created = created
        self._max_model_len = max_model_len

    def adapter(self, name: str | None, asked: str | None) -> str | Problem | None:
        """Which adapter a request is answered with, None for the pool's default.

        Args:
            name: the model that it names, if any.
            asked: its sampling parameter ``adapter``, if given.
        """
        if name in self.adapters:
            if asked not in (None, name):
                return Problem(400, f"model names {name!r} and adapter {asked!r}; leave one out.", "invalid", "adapter")
            return name
        if name not in (None, self.model):
            return self._missing(str(name))
        return asked if asked is not None or name is None or not self.adapters else BASE_ADAPTER

    def listed(self) -> dict[str, Any]:
        """The body of ``GET /v1/models``."""
        return {"object": "list", "data": [self._entry(name) for name in (self.model, *self.adapters)]}

    def entry(self, name: str) -> dict[str, Any] | Problem:
        """The body of ``GET /v1/models/NAME``."""
        return self._entry(name) if name == self.model or name in self.adapters else self._missing(name)

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": name, "object": "model", "created": self._created, "owned_by": OWNER}
        if self._max_model_len:
            entry["max_model_len"] = self._max_model_len
        if name != self.model:
            entry["parent"] = self.model
        return entry

    def _missing(self, name: str) -> Problem:
        text = f"The model {name!r} does not exist; there are: {', '.join((self.model, *self.adapters))}."
        return Problem(404, text, "model_not_found", "model")
