"""The process of ``_reach_ways.py`` that has a data set answered by Ray Data: its arguments are the cluster's address,
the actor's cores, and the model (empty for the small one).

Reads lines from standard input, each the JSON of ``{"prompts", "tokens"}``; answers each with a line. An actor loads
the model for each data set, so a row alone goes first, and the time is from its answer to that of all others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def answered(prompts: list[str], tokens: int, cores: int, model: str | None) -> dict[str, Any]:
    """All prompts as one batch of a data set, behind one that is there to load the model."""
    import ray.data

    from samplerpool.ray import Sampler

    first = ray.data.from_items([{"row_number": len(prompts), "prompt": "Say hello."}], override_num_blocks=1)
    rows = [{"row_number": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    sampling = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
    told = first.union(ray.data.from_items(rows, override_num_blocks=1)).map_batches(
        Sampler,
        fn_constructor_kwargs={"model": model, "seed": 0, **sampling},
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=cores,
        batch_size=None,
        batch_format="pyarrow",
    )
    arrived: list[float] = []
    count = 0
    for batch in told.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        arrived.append(time.perf_counter())
        if len(arrived) > 1:
            count += sum(row["completion_tokens"] for row in batch["generation"].to_pylist())
    return {"seconds": arrived[-1] - arrived[0], "tokens": count, "first_token_s": None}


def main() -> None:
    """Until the end of the input."""
    import ray
    import ray.data

    address, cores, model = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    while line := sys.stdin.readline():
        order = json.loads(line)
        told.write(json.dumps(answered(order["prompts"], order["tokens"], int(cores), model or None)) + "\n")
        told.flush()


if __name__ == "__main__":
    main()
