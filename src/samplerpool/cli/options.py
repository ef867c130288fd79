"""Options that several commands share. The sampling options come from the one definition in ``config.sampling``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from samplerpool.config.adapters import lora_config
from samplerpool.config.arguments import ClientLimits, ModelArguments, PoolArguments, SampleArguments, Supervision
from samplerpool.config.command_line import value_of
from samplerpool.config.sampling import ALIASES, PARAMS, sampling_params
from samplerpool.config.settings import Setting, settings_of
from samplerpool.errors import InvalidParameter, UsageError
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


_READERS: dict[str, Callable[[str], Any]] = {"strings": str, "words": _word, "biases": _bias}
"""How one value of such a parameter is written; others are written as in any command line of arguments."""
_METAVARS = {
    "int": "N",
    "float": "X",
    "name": "NAME",
    "strings": "TEXT",
    "ints": "ID",
    "words": "TEXT|[ID,...]",
    "biases": "ID=BIAS",
}
_SEVERAL = ("strings", "ints", "words", "biases")


class SettingType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 alone
    """Text that is read and checked as it is in every other way in."""

    name = "value"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One value; a default is taken as it is."""
        if not isinstance(value, str):
            return value
        spec = self._setting.spec
        try:
            if spec is None:
                return self._setting.checked(value_of(self._setting, [value]))
            read = _READERS[spec.kind](value) if spec.kind in _READERS else value_of(self._setting, [value])
            sampling_params({self._setting.name: [read] if spec.kind in _SEVERAL else read})
        except (ValueError, InvalidParameter) as error:
            self.fail(str(error), param, ctx)
        return read


def sampling_options(command: Command) -> Command:
    """Add every sampling parameter as an option. The command gets them as ``sampling``: name to value, given ones only.

    Values out of range are an error before the command runs.
    """

    @functools.wraps(command)
    def with_sampling(*args: Any, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in PARAMS}
        given = {name: value for name, value in values.items() if value is not None and value != ()}
        return command(*args, sampling=sampling_params(given).given(), **kwargs)

    settings = settings_of(SampleArguments)
    decorated: Any = _with_options(with_sampling, [_sampling_option(settings[name]) for name in PARAMS])
    return decorated  # type: ignore[no-any-return]


def _sampling_option(setting: Setting) -> Callable[[Any], Any]:
    assert setting.spec is not None
    kind, flag = setting.spec.kind, _flag(setting.name)
    if kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", setting.name, default=None, help=setting.help)
    aliases = [_flag(alias) for alias, canonical in ALIASES.items() if canonical == setting.name]
    many, text = kind in _SEVERAL, setting.help
    return click.option(
        flag,
        *aliases,
        setting.name,
        type=SettingType(setting),
        multiple=many,
        default=None,
        metavar=_METAVARS.get(kind, "TEXT"),
        help=" ".join(filter(None, [text, "May be given several times." if many else "", _bounds(setting)])),
    )


def _bounds(setting: Setting) -> str:
    return f"[{setting.bounds}]" if setting.bounds else ""


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


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


def assignment(value: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as a pair; a value that reads as JSON (numbers, true, null) is taken as that, else as text."""
    name, equals, text = value.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE.")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _assignments(_ctx: click.Context, _param: click.Parameter, values: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return dict(values)


template_option = click.option(
    "--template-option",
    "template_options",
    type=assignment,
    multiple=True,
    callback=_assignments,
    metavar="NAME=VALUE",
    help="Argument for the chat template, like enable_thinking=false. May be given several times.",
)
"""The command gets ``template_options``: name to value."""


def setting_option(setting: Setting) -> Callable[[Any], Any]:
    """The option for a field of a group of arguments; the command gets it by the field's name."""
    name, flag = setting.name, _flag(setting.name.removesuffix("_s"))
    if setting.types == (bool,):
        return click.option(flag, name, is_flag=True, default=setting.default, help=setting.help)
    if setting.name == "engine_options":
        return click.option(
            "--engine-option",
            name,
            type=assignment,
            multiple=True,
            metavar="NAME=VALUE",
            help="Setting of that engine. May be given several times.",
        )
    only_words = setting.choices and setting.low is None
    number = int in setting.types or float in setting.types
    usual = "SECONDS" if name.endswith("_s") else "N" if number else "JSON" if dict in setting.types else None
    return click.option(
        flag,
        name,
        type=click.Choice(setting.choices) if only_words else SettingType(setting),
        metavar=setting.metavar or usual,
        default=setting.default,
        show_default=number and setting.default is not None,
        help=f"{setting.help} {_bounds(setting)}".strip(),
    )


LAUNCH_ONLY = (
    "listen",
    "advertise",
    "cluster",
    "placement",
    "cpus_per_worker",
    "placement_timeout_s",
    *(each.name for each in (*fields(ClientLimits), *fields(Supervision))),
)
"""Settings of a pool that others use."""


def model_options(command: Command) -> Command:
    """How a model is loaded and served.

    The command gets fields of ``ModelArguments`` and ``PoolArguments``, and ``lora``, a short way to say
    ``peft_config``.
    """
    pool = [each for name, each in settings_of(PoolArguments).items() if name not in ("pool", *LAUNCH_ONLY)]
    model = [each for name, each in settings_of(ModelArguments).items() if name != "model_name_or_path"]
    lora = click.option(
        "--lora",
        multiple=True,
        metavar="[NAME=]PATH",
        help="LoRA adapter: with a name, requests choose it by --adapter NAME; without, it is merged into the model. "
        "May be given several times. Needs the extra 'peft'.",
    )
    return _with_options(command, [*(setting_option(each) for each in (*pool, *model)), lora])


def launch_options(command: Command) -> Command:
    """Who may come in, what each worker takes from its clients, and how it is supervised."""
    settings = settings_of(PoolArguments)
    return _with_options(command, [setting_option(settings[name]) for name in LAUNCH_ONLY])


def check_unheard(context: click.Context, names: Iterable[str]) -> None:
    """Options of a private pool, typed for a pool that runs already, would do nothing: say so.

    Raises:
        UsageError: one was typed.
    """
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(param.opts[0] for param in context.command.params if param.name == name)
            raise UsageError(f"{option} is for a pool that is started here, so it needs --model MODEL.")


def arguments_from(
    model: str | None, pool: str | None, sampling: dict[str, Any], chosen: dict[str, Any]
) -> tuple[ModelArguments, SampleArguments, PoolArguments]:
    """The three groups of arguments.

    Args:
        sampling: from ``sampling_options``.
        chosen: what ``model_options`` and ``launch_options`` gave the command.

    Raises:
        InvalidParameter: adapters that contradict each other.
    """
    of_pool = {**chosen, "engine_options": dict(chosen["engine_options"])}
    adapters = lora_config(of_pool.pop("lora"))
    of_model = {name: of_pool.pop(name) for name in settings_of(ModelArguments) if name in chosen}
    if adapters is not None:
        if of_model["peft_config"] is not None:
            raise InvalidParameter("Give adapters by --lora or by --peft-config, not by both.")
        of_model["peft_config"] = adapters
    return (
        ModelArguments(model_name_or_path=model, **of_model),
        SampleArguments(**sampling),
        PoolArguments(pool=pool, **of_pool),
    )
