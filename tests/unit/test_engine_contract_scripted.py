"""The scripted engine keeps the engine contract."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.engine_contract")

from samplerpool.config.arguments import EngineConfig  # noqa: E402
from samplerpool.engine.base import Engine  # noqa: E402
from samplerpool.engine.scripted import ScriptedEngine  # noqa: E402
from tests.engine_contract import EngineContract  # noqa: E402


class TestScriptedEngine(EngineContract):
    preempts = False

    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return ScriptedEngine(EngineConfig(engine="scripted", max_batch=max_batch, max_model_len=max_model_len))

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return tuple(f"<user>{name} [[tokens:{tokens}]]\n".encode())

    def sampled_prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return tuple(f"<user>{name} [[random:{tokens}]]\n".encode())

    def ending_prompt(self) -> tuple[int, ...]:
        return tuple(b"<user>[[tokens:17]]\n")
