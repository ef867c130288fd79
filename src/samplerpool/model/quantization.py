"""``quant_config``: transformers' own quantization configurations, by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from samplerpool.config.adapters import named_config
from samplerpool.config.sampling import unknown_name
from samplerpool.errors import InvalidParameter, StartFailed
from samplerpool.model.failures import failure_line

BITS = {4: "load_in_4bit", 8: "load_in_8bit"}
_BITSANDBYTES = ("bitsandbytes", "bnb")


def quantization_config(quant_config: Mapping[str, Any] | str | None) -> Any:
    """The configuration for ``from_pretrained``.

    Args:
        quant_config: ``name`` is a method of transformers' (``torchao``, ``bitsandbytes`` or ``bnb``, ``quanto``,
            ``hqq``, ``gptq``, ``awq``, ``fp8``, ...), the rest are the keyword arguments of its configuration. For
            bitsandbytes ``quantization_bit`` (4 or 8) is understood as well. For torchao ``quant_type`` is the name of
            a class of ``torchao.quantization`` (``Int8WeightOnlyConfig``, or ``int8_weight_only``), whose own arguments
            stand beside it. A text is JSON.

    Raises:
        InvalidParameter: no such method, or an argument that it does not take.
        StartFailed: the method's package is missing.
    """
    if quant_config is None:
        return None
    arguments = named_config("quant_config", quant_config)
    name = arguments.pop("name", None)
    methods = _methods()
    if name not in methods:
        raise InvalidParameter(unknown_name("quantization method (quant_config's name)", str(name), list(methods)))
    if name in _BITSANDBYTES:
        arguments = _with_bits(arguments)
    elif str(name).startswith("bitsandbytes_"):
        arguments = {f"load_in_{str(name).rpartition('_')[2]}": True, **arguments}
    elif name == "torchao":
        arguments = _with_torchao_type(arguments)
    return _built(f"quant_config {name!r}", methods[name], arguments)


def _methods() -> dict[str, type]:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as CONFIGS

    named = {name: kind for name, kind in CONFIGS.items() if name != "gguf"}  # which is a kind of file
    return {**named, **dict.fromkeys(_BITSANDBYTES, BitsAndBytesConfig)}


def _with_bits(arguments: dict[str, Any]) -> dict[str, Any]:
    bits = arguments.pop("quantization_bit", None)
    if bits is None and not any(arguments.get(flag) for flag in BITS.values()):
        bits = 4
    if bits is None:
        return arguments
    if str(bits) not in map(str, BITS):
        raise InvalidParameter(f"quant_config's quantization_bit must be 4 or 8, not {bits!r}.")
    return {BITS[int(bits)]: True, **arguments}


def _with_torchao_type(arguments: dict[str, Any]) -> dict[str, Any]:
    """``quant_type`` as an object, made of those arguments that are not for the configuration around it."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise StartFailed("quant_config 'torchao' needs the package torchao; run: pip install torchao") from error
    from torchao.core.config import AOBaseConfig
    from transformers import TorchAoConfig

    kinds = {
        kind.__name__: kind
        for kind in vars(quantization).values()
        if inspect.isclass(kind) and issubclass(kind, AOBaseConfig) and kind is not AOBaseConfig
    }
    outer = _parameters(TorchAoConfig)
    if "quant_type" not in arguments:
        what = "quant_config 'torchao'"
        known = {*outer, *(name for kind in kinds.values() for name in _parameters(kind))}
        problems = [unknown_name(f"argument of {what}", name, outer) for name in arguments if name not in known]
        raise InvalidParameter(" ".join([*problems, f"{what} needs a quant_type: {', '.join(sorted(kinds))}."]))
    wanted = arguments["quant_type"]
    name = str(wanted)
    if re.fullmatch(r"[a-z0-9_]+", name):
        name = "".join(part.capitalize() for part in name.split("_")) + "Config"
    if name not in kinds:
        raise InvalidParameter(unknown_name("quant_type of torchao", str(wanted), list(kinds)))
    own = {key: value for key, value in arguments.items() if key not in outer}
    made = _built(f"quant_type {name!r}", kinds[name], own, beside=outer)
    return {**{key: value for key, value in arguments.items() if key in outer}, "quant_type": made}


def _built(what: str, kind: type, arguments: Mapping[str, Any], beside: Sequence[str] = ()) -> Any:
    """An object of a library's class.

    Args:
        beside: names that may stand next to the arguments, and were taken out of them.
    """
    known = _parameters(kind)
    for name in arguments:
        if name not in known:
            raise InvalidParameter(unknown_name(f"argument of {what}", str(name), [*known, *beside]))
    try:
        return kind(**arguments)
    except ImportError as error:
        raise StartFailed(f"{what} cannot be used here: {failure_line(error)}.") from error
    except Exception as error:  # each method's own checks
        raise InvalidParameter(f"{what} cannot be made: {failure_line(error)}.") from error


def _parameters(kind: type) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, each in inspect.signature(kind).parameters.items() if each.kind in kinds]
