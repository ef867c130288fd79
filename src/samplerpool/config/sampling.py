"""The sampling parameters: one definition for keyword arguments, command line options, config files and the wire.

``None`` means *not given*: the value then follows the worker's launch defaults, the checkpoint's own
``generation_config`` and last the built-in default, in this order.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, cast

from samplerpool.errors import InvalidParameter

Kind = Literal["int", "float", "bool", "name", "strings", "ints", "words", "biases"]

MAX_SEED = 2**53 - 1
"""Seeds stay exact in JSON and in JavaScript readers of it."""

SAMPLING: Final = "_sampling"
"""In a sample, where a converter puts parameters that hold for this row alone; a column of that name does not count."""

MAX_INT32 = 2**31 - 1
"""Lengths and token ids stay exact in the 32-bit tensors of the engines."""

BASE_ADAPTER = "base"
"""The name by which a request asks for the model without any of its adapters."""

MAX_LOGPROBS = 20
"""As OpenAI's and, by default, vLLM's servers: a token's entry stays small beside what the model costs."""

Word = str | tuple[int, ...]
"""Text, or the token ids that it is made of."""


@dataclass(frozen=True)
class ParamSpec:
    """What may be said about one sampling parameter.

    Args:
        kind: type of the value; ``name`` is a non-empty string; ``strings``, ``ints`` and ``words`` (strings or lists
            of token ids) are tuples, a single value is taken as a tuple of one; ``biases`` maps token ids to numbers
            and is kept as a tuple of pairs.
        help: one line for ``--help``.
        low, high: inclusive bounds; ``low_open`` makes the lower one exclusive.
        default: the value when nobody says anything; every engine can honour it.
    """

    kind: Kind
    help: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    low_open: bool = False


def _param(
    kind: Kind,
    help: str,
    default: Any = None,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
) -> Any:
    return field(default=None, metadata={"spec": ParamSpec(kind, help, default, low, high, low_open)})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request. ``temperature`` 0 (or ``do_sample`` false) means greedy."""

    max_new_tokens: int | None = _param("int", "Longest answer, in tokens.", 128, low=1, high=MAX_INT32)
    do_sample: bool | None = _param("bool", "Sample (true) or take the most probable token (false).")
    temperature: float | None = _param("float", "Divides the logits; 0 means greedy.", 1.0, low=0.0, high=100.0)
    top_k: int | None = _param("int", "Keep the k most probable tokens; 0 keeps all.", 0, low=0, high=MAX_INT32)
    top_p: float | None = _param(
        "float", "Keep the fewest tokens whose probabilities reach p.", 1.0, low=0.0, high=1.0, low_open=True
    )
    min_p: float | None = _param(
        "float", "Keep tokens of at least p times the largest probability.", 0.0, low=0.0, high=1.0
    )
    typical_p: float | None = _param(
        "float", "Keep the most typical tokens up to this probability.", 1.0, low=0.0, high=1.0, low_open=True
    )
    repetition_penalty: float | None = _param(
        "float", "Above 1, tokens seen before become less likely.", 1.0, low=0.0, high=100.0, low_open=True
    )
    presence_penalty: float | None = _param(
        "float", "Subtracted from the logits of tokens generated before.", 0.0, low=-2.0, high=2.0
    )
    frequency_penalty: float | None = _param(
        "float", "Subtracted from the logits for each time that a token was generated.", 0.0, low=-2.0, high=2.0
    )
    no_repeat_ngram_size: int | None = _param(
        "int", "No sequence of so many tokens comes twice, the prompt included; 0: any may.", 0, low=0, high=MAX_INT32
    )
    logit_bias: tuple[tuple[int, float], ...] | None = _param(
        "biases", "Added to the logits of these token ids.", (), low=-100.0, high=100.0
    )
    bad_words: tuple[Word, ...] | None = _param(
        "words", "Words, or lists of token ids, that must not come.", (), low=0, high=MAX_INT32
    )
    min_new_tokens: int | None = _param(
        "int", "No end-of-sequence or stop token before so many.", 0, low=0, high=MAX_INT32
    )
    stop: tuple[str, ...] | None = _param("strings", "End the answer before any of these strings.", ())
    stop_token_ids: tuple[int, ...] | None = _param(
        "ints", "End the answer at any of these token ids.", (), low=0, high=MAX_INT32
    )
    ignore_eos: bool | None = _param("bool", "Go on after the end-of-sequence token.", False)
    skip_special_tokens: bool | None = _param("bool", "Leave special tokens out of the text.", True)
    seed: int | None = _param("int", "Seed of the draw; drawn and reported when not given.", low=0, high=MAX_SEED)
    num_return_sequences: int | None = _param("int", "Answers per prompt.", 1, low=1, high=65536)
    logprobs: int | None = _param(
        "int",
        "Report the log-probability of each token, and of so many most probable ones.",
        low=0,
        high=MAX_LOGPROBS,
    )
    adapter: str | None = _param("name", "Answer with this LoRA adapter; base: with none.", BASE_ADAPTER)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken (of resolved parameters)."""
        return self.temperature == 0 or self.do_sample is False

    def given(self) -> dict[str, Any]:
        """Only what was given, as plain values for the wire or a manifest: JSON can hold them."""
        values = ((name, spec.kind, getattr(self, name)) for name, spec in PARAMS.items())
        return {name: _plain(kind, value) for name, kind, value in values if value is not None}


def _plain(kind: Kind, value: Any) -> Any:
    if kind == "biases":
        return {str(token_id): bias for token_id, bias in value}
    if kind == "words":
        return [word if isinstance(word, str) else list(word) for word in value]
    return list(value) if isinstance(value, tuple) else value


PARAMS: dict[str, ParamSpec] = {f.name: f.metadata["spec"] for f in fields(SamplingParams)}

ALIASES: dict[str, str] = {"n": "num_return_sequences", "max_tokens": "max_new_tokens"}


def sampling_params(values: Mapping[str, Any] | None = None, /, **more: Any) -> SamplingParams:
    """Check names, types and ranges, and build ``SamplingParams``.

    Args:
        values, more: parameter name to value; a value of ``None`` counts as not given.

    Raises:
        InvalidParameter: one error that names everything that is wrong.
    """
    merged = {**(values or {}), **more}
    checked: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in merged.items():
        canonical = ALIASES.get(name, name)
        spec = PARAMS.get(canonical)
        if spec is None:
            problems.append(unknown_name("sampling parameter", name, [*PARAMS, *ALIASES]))
            continue
        if value is None:
            continue
        if canonical in checked:
            problems.append(f"{canonical} is given twice, once as its alias; leave one out.")
            continue
        try:
            checked[canonical] = _checked(canonical, spec, value)
        except ValueError as error:
            problems.append(str(error))
    if "min_new_tokens" in checked and checked["min_new_tokens"] > checked.get("max_new_tokens", MAX_INT32):
        problems.append(
            f"min_new_tokens must be at most max_new_tokens, {checked['max_new_tokens']}, "
            f"not {checked['min_new_tokens']}."
        )
    if problems:
        raise InvalidParameter(" ".join(problems), parameters=[str(name) for name in merged])
    return SamplingParams(**checked)


def field_values(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values (of ``given``, JSON or YAML) as keyword arguments of ``SamplingParams`` or a subclass of it.

    Raises:
        InvalidParameter: as ``sampling_params`` does.
    """
    params = sampling_params(plain)
    return {name: value for name in PARAMS if (value := getattr(params, name)) is not None}


def unknown_name(what: str, name: str, known: list[str]) -> str:
    """A sentence about a name that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}."
    return f"Unknown {what} {name!r}; {hint}"


def _checked(name: str, spec: ParamSpec, value: Any) -> Any:
    if spec.kind == "strings":
        values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
        if values is None or not all(isinstance(v, str) and v for v in values):
            raise ValueError(f"{name} must be a non-empty string or a list of them, not {value!r}.")
        return tuple(_whole(name, v) for v in values)
    if spec.kind == "ints":
        items = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else None
        if items is None:
            raise ValueError(f"{name} must be an integer or a list of them, not {value!r}.")
        return tuple(_checked_number(name, "int", spec, v) for v in items)
    if spec.kind == "name":
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} must be a non-empty string, not {value!r}.")
        return _whole(name, value)
    if spec.kind == "words":
        return _checked_words(name, spec, value)
    if spec.kind == "biases":
        return _checked_biases(name, spec, value)
    if spec.kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {value!r}.")
        return value
    return _checked_number(name, spec.kind, spec, value)


def _whole(name: str, text: str) -> str:
    """A text that can be sent: JSON's escapes can spell half a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be of whole characters, and half a surrogate pair is in {text!r}.") from None
    return text


def _checked_words(name: str, spec: ParamSpec, value: Any) -> tuple[Word, ...]:
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str | list | tuple) and word for word in words):
        raise ValueError(f"{name} must be a list of non-empty strings or lists of token ids, not {value!r}.")
    return tuple(
        _whole(name, word)
        if isinstance(word, str)
        else tuple(cast(int, _checked_number(name, "int", spec, v)) for v in word)
        for word in words
    )


def _checked_biases(name: str, spec: ParamSpec, value: Any) -> tuple[tuple[int, float], ...]:
    """Token ids may be written as text, since JSON has no other keys; pairs are taken as well."""
    try:
        pairs = dict(value.items() if isinstance(value, Mapping) else value)
        biases = {_token_id(key): bias for key, bias in pairs.items()}
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must map token ids, from 0 to {MAX_INT32}, to numbers, like {{17: -100}}, not {value!r}."
        ) from None
    return tuple(sorted((key, float(_checked_number(name, "float", spec, bias))) for key, bias in biases.items()))


def _token_id(key: Any) -> int:
    token_id = int(key) if isinstance(key, str) and key.isdecimal() else key
    if type(token_id) is not int or not 0 <= token_id <= MAX_INT32:
        raise ValueError
    return token_id


def _checked_number(name: str, kind: Kind, spec: ParamSpec, value: Any) -> int | float:
    allowed = (int,) if kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name} must be {'an integer' if kind == 'int' else 'a number'}, not {value!r}.")
    below = spec.low is not None and (value <= spec.low if spec.low_open else value < spec.low)
    above = spec.high is not None and value > spec.high
    if below or above or value != value:
        raise ValueError(f"{name} must be {bounds_of(spec)}, not {value!r}.")
    return int(value) if kind == "int" else float(value)


def bounds_of(spec: ParamSpec) -> str:
    """Between which numbers it lies, in words; empty where any will do."""
    low = None if spec.low is None else f"{'above' if spec.low_open else 'at least'} {_figure(spec.low)}"
    high = None if spec.high is None else f"at most {_figure(spec.high)}"
    return " and ".join(part for part in (low, high) if part)


def _figure(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def resolve(*layers: SamplingParams) -> SamplingParams:
    """Fill what the first layer leaves open from the next ones, then from the built-in defaults.

    The first layer with a word on ``do_sample`` or ``temperature`` decides on sampling: a given temperature above 0
    means sampling, even if a checkpoint's ``generation_config`` says greedy. Without any word on either, decoding is
    greedy. A seed that nobody gave is drawn here, so that it can be reported.

    Args:
        layers: from the most specific (the request) to the least (the checkpoint).

    Returns:
        Parameters without gaps, but for ``logprobs``.
    """
    values = {name: _first_given(name, layers) for name in PARAMS}
    values["do_sample"] = _samples(layers)
    if values["seed"] is None:
        values["seed"] = secrets.randbelow(2**32)
    for name, spec in PARAMS.items():
        if values[name] is None:
            values[name] = spec.default
    return SamplingParams(**values)


def _samples(layers: tuple[SamplingParams, ...]) -> bool:
    for layer in layers:
        if layer.do_sample is not None:
            return layer.do_sample
        if layer.temperature is not None:
            return layer.temperature > 0
    return False


def _first_given(name: str, layers: tuple[SamplingParams, ...]) -> Any:
    for layer in layers:  # runs for every parameter of every request: a plain loop is three times as fast
        value = getattr(layer, name)
        if value is not None:
            return value
    return None
