"""Options that several commands share. The sampling options come from the one definition in ``config.sampling``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from samplerpool.config.arguments import (
    DTYPES,
    ENGINES,
    LOG_REQUESTS,
    MIN_LOG_BYTES,
    ClientLimits,
    ModelArguments,
    PoolArguments,
    SampleArguments,
    Supervision,
)
from samplerpool.config.sampling import ALIASES, PARAMS, ParamSpec, field_values, sampling_params
from samplerpool.errors import UsageError
from samplerpool.pool.names import check_pool_name
from samplerpool.wire.endpoint import ConnectionFile, find_pool

Command = TypeVar("Command", bound=Callable[..., Any])


def _word(value: str) -> str | list[int]:
    """Text, or a JSON list of token ids."""
    try:
        read = json.loads(value) if value.startswith("[") else value
    except ValueError:
        return value
    return read if isinstance(read, list) and all(isinstance(item, int) for item in read) else value


def _bias(value: str) -> tuple[str, float]:
    """``ID=BIAS`` as a pair."""
    token_id, equals, bias = value.partition("=")
    try:
        if equals and token_id.isdecimal():
            return token_id, float(bias)
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r} is not of the form ID=BIAS, a token id and a number.")


_TYPES: dict[str, Any] = {
    "int": click.INT,
    "float": click.FLOAT,
    "strings": click.STRING,
    "ints": click.INT,
    "words": _word,
    "biases": _bias,
}
_METAVARS = {"int": "N", "float": "X", "strings": "TEXT", "ints": "ID", "words": "TEXT|[ID,...]", "biases": "ID=BIAS"}
_SEVERAL = ("strings", "ints", "words", "biases")


def sampling_options(command: Command) -> Command:
    """Add every sampling parameter as an option. The command gets them as ``sampling``: name to value, given ones only.

    Values out of range are an ``InvalidParameter`` before the command runs.
    """

    @functools.wraps(command)
    def with_sampling(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in PARAMS}
        given = {name: value for name, value in values.items() if value is not None and value != ()}
        return command(*args, sampling=sampling_params(given).given(), **kwargs)

    decorated: Any = with_sampling
    for name, spec in reversed(PARAMS.items()):
        decorated = _sampling_option(name, spec)(decorated)
    return decorated  # type: ignore[no-any-return]


def _sampling_option(name: str, spec: ParamSpec) -> Callable[[Any], Any]:
    flags = [_flag(name), *(_flag(alias) for alias, canonical in ALIASES.items() if canonical == name)]
    if spec.kind == "bool":
        return click.option(f"{flags[0]}/--no-{flags[0][2:]}", name, default=None, help=spec.help)
    many = spec.kind in _SEVERAL
    text = f"{spec.help} May be given several times." if many else spec.help
    return click.option(
        *flags, name, type=_TYPES[spec.kind], multiple=many, default=None, metavar=_METAVARS[spec.kind], help=text
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def checked_pool_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """A callback of click's: the name, if a pool may have it."""
    try:
        return None if value is None else check_pool_name(value)
    except UsageError as error:
        raise click.BadParameter(error.message) from error


def pool_option(text: str = "Pool to use; without it, the one that runs.") -> Callable[[Command], Command]:
    """``--pool NAME``, checked; the command gets ``pool``, None where it was not given."""
    return click.option("--pool", metavar="NAME", default=None, callback=checked_pool_name, help=text)


def pool_argument(command: Command) -> Command:
    """An optional argument POOL, checked; the command gets ``pool``, None where it was not given."""
    return click.argument("pool", required=False, callback=checked_pool_name)(command)


def connect_option(command: Command) -> Command:
    """``--connect FILE``; the command gets ``connect``, None where it was not given."""
    return click.option(
        "--connect",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Connection file of a pool, which may run on another machine.",
    )(command)


def chosen_pool(pool: str | None, connect: Path | None) -> ConnectionFile:
    """The pool of that name or file; without either, the only one that runs.

    Raises:
        PoolNotFound: there is none, or not just one.
        TransportError: the file is not to be trusted, or is no connection file.
    """
    if connect is None:
        return find_pool(pool)
    if pool is not None:
        raise UsageError("Give either a pool's name or --connect FILE: they name different pools.")
    return ConnectionFile.read(connect)


def drain_option(default_s: float) -> Callable[[Command], Command]:
    """``--timeout SECONDS``; the command gets ``timeout_s``."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0, 1e9, max_open=True),
        metavar="SECONDS",
        default=default_s,
        show_default=True,
        help="How long the workers may take to finish what they run.",
    )


def number_or_auto(value: str) -> int | str:
    """A number from 1, or the word ``auto``."""
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number from 1 nor auto.")
    return int(value)


def assignment(value: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as a pair; a value that reads as JSON (numbers, true, null) is taken as that, else as text."""
    name, equals, text = value.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE.")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def model_options(command: Command) -> Command:
    """How a model is loaded and served; the command gets ``dtype, template, custom_chat_template, ...``."""
    options = [
        click.option("--workers", type=number_or_auto, metavar="N|auto", default="auto", help="auto: one per device."),
        click.option("--devices", metavar="auto|cpu|0,1", default="auto", help="Devices to use."),
        click.option(
            "--engine",
            type=click.Choice(ENGINES),
            default="auto",
            help="What runs the model: dense and paged compute many requests together, sequential one after the other, "
            "scripted has no model. auto: the best that computes what the model computes.",
        ),
        click.option(
            "--engine-option",
            "engine_options",
            type=assignment,
            multiple=True,
            metavar="NAME=VALUE",
            help="Setting of that engine. May be given several times.",
        ),
        click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="Number format of the weights."),
        click.option(
            "--max-batch",
            type=click.IntRange(1),
            metavar="N",
            default=PoolArguments.max_batch,
            help="Requests at a time.",
        ),
        click.option("--max-model-len", type=click.IntRange(1), metavar="N", help="Tokens of prompt plus answer."),
        click.option("--template", metavar="NAME", help="Rendering plugin: chatml, qwen3, ..."),
        click.option("--custom-chat-template", metavar="TEXT|FILE", help="Jinja chat template to use instead."),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
        click.option(
            "--start-timeout",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            default=600.0,
            help="How long the workers may take to become ready.",
        ),
        click.option(
            "--metrics",
            metavar="HOST:PORT",
            help="Serve figures to Prometheus there, for as long as the pool runs. Needs the extra 'metrics'.",
        ),
        click.option(
            "--log-requests",
            type=click.Choice(LOG_REQUESTS),
            default=PoolArguments.log_requests,
            help="Which requests get a line in their worker's log as they end.",
        ),
        click.option(
            "--max-log-bytes",
            type=click.IntRange(MIN_LOG_BYTES),
            metavar="N",
            default=PoolArguments.max_log_bytes,
            help="Begin a new log file beyond this size; three earlier ones are kept.",
        ),
    ]
    decorated: Any = command
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def limit_options(command: Command) -> Command:
    """What each worker takes from its clients, and how it is supervised; the command gets the fields of
    ``ClientLimits`` and ``Supervision``."""
    decorated: Any = command
    for each in reversed((*fields(ClientLimits), *fields(Supervision))):
        kind = click.FloatRange if isinstance(each.default, float) else click.IntRange
        decorated = click.option(
            _flag(each.name.removesuffix("_s")),
            each.name,
            type=kind(each.metadata["low"]),
            metavar="SECONDS" if each.name.endswith("_s") else "N",
            default=each.default,
            show_default=True,
            help=each.metadata["help"],
        )(decorated)
    return decorated  # type: ignore[no-any-return]


def arguments_from(
    model: str | None, pool: str | None, sampling: dict[str, Any], chosen: dict[str, Any]
) -> tuple[ModelArguments, SampleArguments, PoolArguments]:
    """The three groups of arguments.

    Args:
        sampling: from ``sampling_options``.
        chosen: what ``model_options`` and ``limit_options`` gave the command.
    """
    values = {**chosen, "engine_options": dict(chosen["engine_options"])}
    model_names = ("dtype", "template", "custom_chat_template", "trust_remote_code")
    return (
        ModelArguments(model_name_or_path=model, **{name: values.pop(name) for name in model_names}),
        SampleArguments(**field_values(sampling)),
        PoolArguments(pool=pool, start_timeout_s=values.pop("start_timeout"), **values),
    )
