"""``samplerpool serve``: an HTTP server with OpenAI's interface, over a running pool or one started for it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samplerpool.cli.command import Command
from samplerpool.cli.loading import loading_display
from samplerpool.cli.options import (
    arguments_from,
    check_unheard,
    connect_option,
    model_options,
    pool_option,
    sampling_options,
)
from samplerpool.cli.output import note
from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.wire.files import check_secret, read_trusted

if TYPE_CHECKING:
    from samplerpool.gateway.admission import Keys
    from samplerpool.gateway.service import GatewaySettings

KEY_VARIABLE = "SAMPLERPOOL_API_KEY"
_NEEDED = ("starlette", "uvicorn", "prometheus_client")


@click.command("serve", cls=Command)
@pool_option()
@connect_option
@click.option("--model", metavar="MODEL", help="Start a pool of our own with this model, and stop it at the end.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Keys that let clients in, one a line, with a name before each. One more may be in {KEY_VARIABLE}.",
)
@click.option("--anyone", is_flag=True, help="Answer whoever reaches the address, without a key.")
@click.option("--model-name", metavar="NAME", help="What clients call the pool's model.  [default: its own name]")
@click.option("--fetch-media", is_flag=True, help="Fetch images, videos and sounds from http(s) URLs for clients.")
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Answers in progress, waiting ones included; more are refused for now (429). n answers count n.",
)
@click.option(
    "--max-body",
    "max_body_bytes",
    type=click.IntRange(1),
    default=16 * 2**20,
    show_default=True,
    metavar="BYTES",
    help="Of one request.",
)
@click.option(
    "--request-timeout",
    "request_timeout_s",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time for an answer; 0: any.",
)
@click.option(
    "--access-log",
    type=click.Choice(("errors", "all", "none")),
    default="errors",
    show_default=True,
    help="Which requests get a line on stderr as they end; never their text.",
)
@click.option(
    "--timeout",
    "drain_s",
    type=click.FloatRange(0, 1e9, max_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running answers may take to end after Ctrl-C or SIGTERM.",
)
@sampling_options
@model_options
@click.pass_context
def command(
    context: click.Context,
    /,
    pool: str | None,
    connect: Path | None,
    model: str | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    anyone: bool,
    model_name: str | None,
    fetch_media: bool,
    max_requests: int,
    max_body_bytes: int,
    request_timeout_s: float,
    access_log: str,
    drain_s: float,
    sampling: dict[str, Any],
    **model_settings: Any,
) -> int:
    """Serve a model over HTTP, as OpenAI's interface has it: /v1/chat/completions, /v1/completions, /v1/models,
    /health, /metrics.

    Sampling options given here are defaults for the requests that come in. The pool goes on at the end, unless it was
    started here with --model.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"samplerpool serve needs {', '.join(missing)}, which is not installed. "
            "Install it with: pip install 'samplerpool[serve]'"
        )
    from samplerpool.gateway.admission import Keys, check_exposure, is_loopback
    from samplerpool.gateway.server import bound_socket
    from samplerpool.gateway.service import GatewaySettings

    own = model is not None or context.get_parameter_source("engine") is click.core.ParameterSource.COMMANDLINE
    if sum((pool is not None, connect is not None, own)) > 1:
        raise UsageError("Give one of --pool, --connect and --model (or --engine), not several.")
    if sampling.get("num_return_sequences", 1) > 1:
        raise InvalidParameter("How many answers a request has is its own matter; leave --n out.")
    check_unheard(context, () if own else model_settings)
    keys = Keys(_keys(api_key_file))
    check_exposure(host, keys, anyone=anyone)
    settings = GatewaySettings(
        max_answers=max_requests,
        max_body_bytes=max_body_bytes,
        request_timeout_s=request_timeout_s,
        fetch_media=fetch_media,
        local_only=is_loopback(host) and not keys and not anyone,
        access_log=access_log,
        model_name=model_name,
        defaults=sampling,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("samplerpool").setLevel(logging.INFO)
    bound = bound_socket(host, port)
    with bound:
        asyncio.run(_run(connect or pool, (model, model_settings) if own else None, keys, settings, bound, drain_s))
    return 0


async def _run(
    pool: str | Path | None,
    own: tuple[str | None, dict[str, Any]] | None,
    keys: Keys,
    settings: GatewaySettings,
    bound: socket.socket,
    drain_s: float,
) -> None:
    from samplerpool.gateway.server import serve, start_listening, url_of
    from samplerpool.gateway.service import Gateway
    from samplerpool.samplers.async_sampler import AsyncSampler

    if own is None:
        sampler = await AsyncSampler.connect(pool)
    else:
        model_args, _, pool_args = arguments_from(own[0], None, {}, own[1])
        with loading_display() as on_progress:
            sampler = await AsyncSampler.launch(model_args=model_args, on_progress=on_progress, **vars(pool_args))
    name = None if own else pool or sampler.connection_file.pool
    gateway = Gateway(sampler, keys, settings, name)
    try:
        await gateway.look()
        start_listening(bound)  # from here on clients may come
        who = "for those with a key" if keys else "without a key"
        whose = "" if own else f" of pool {sampler.connection_file.pool!r}"
        note(f"Serving {gateway.catalog.model}{whose} at {url_of(bound)}/v1, {who}. Ctrl-C stops.")
        await serve(gateway, bound, drain_s, note)
        note("Stopped.")
    finally:
        await gateway.close()


def _keys(file: Path | None) -> dict[str, str]:
    """All keys with the names of those who have them.

    Raises:
        UsageError, PoolNotFound, TransportError: the file is not there, or not to be trusted.
    """
    from samplerpool.gateway.admission import read_keys

    keys: dict[str, str] = {}
    if file is not None:
        text, mode = read_trusted(file, "file of API keys")
        check_secret(file, "file of API keys", mode)
        keys = read_keys(text, str(file))
    if value := os.environ.get(KEY_VARIABLE):
        keys |= read_keys(f"{KEY_VARIABLE} {value}", f"the variable {KEY_VARIABLE}")
    return keys
