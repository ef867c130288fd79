"""What is said of foreign exceptions."""

from __future__ import annotations

from samplerpool.model.failures import MISMATCH, failure_line


def test_it_is_the_first_line() -> None:
    assert failure_line(ValueError("It is broken.\n\nHere is a page of advice.")) == "It is broken"
    assert failure_line(KeyError("name")) == "KeyError 'name'"
    assert failure_line(ValueError()) == "ValueError"
    assert len(failure_line(ValueError("x" * 900))) == 240


def test_a_torchvision_of_another_build_is_named() -> None:
    """transformers hides it behind the module of its own that it could not import."""
    hidden = ModuleNotFoundError("Could not import module 'AutoProcessor'.")
    hidden.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    assert failure_line(hidden) == MISMATCH
