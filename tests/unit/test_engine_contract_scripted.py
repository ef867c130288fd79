"""The scripted engine keeps the engine contract."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.engine_contract")

from samplerpool.config.arguments import EngineConfig  # noqa: E402
from samplerpool.engine.base import Engine  # noqa: E402
from samplerpool.engine.factory import build_engine  # noqa: E402
from samplerpool.engine.scripted import ScriptedEngine  # noqa: E402
from samplerpool.errors import InvalidParameter  # noqa: E402
from tests.engine_contract import EngineContract  # noqa: E402


class TestScriptedEngine(EngineContract):
    first_token_steps = 3

    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return ScriptedEngine(EngineConfig(engine="scripted", max_batch=max_batch, max_model_len=max_model_len))

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return tuple(f"<user>{name} [[tokens:{tokens}]]\n".encode())

    def sampled_prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return tuple(f"<user>{name} [[random:{tokens}]]\n".encode())

    def ending_prompt(self) -> tuple[int, ...]:
        return tuple(b"<user>[[tokens:17]]\n")


def test_the_factory_builds_it_without_a_model() -> None:
    assert build_engine(EngineConfig(engine="scripted")).name == "scripted"


def test_the_factory_names_the_engines_there_are() -> None:
    with pytest.raises(InvalidParameter, match=r"no engine 'dens'; choose one of .*paged.*, scripted"):
        build_engine(EngineConfig(engine="dens"))


def test_other_engines_need_a_model() -> None:
    with pytest.raises(InvalidParameter, match="needs a model"):
        build_engine(EngineConfig(engine="auto"))
