"""A job of Ray Data's, as a process: ``python -m tests.process.ray_data_job ADDRESS INPUT,... OUTPUT OPTIONS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import ray
    import ray.data

    from samplerpool.ray import Sampler, with_row_numbers

    address, source, output, options = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = with_row_numbers(ray.data.read_json(source.split(",")))
    answered = rows.map_batches(
        Sampler,
        fn_constructor_kwargs=json.loads(options),
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=7,
        batch_format="pyarrow",
    )
    found = sorted(answered.take_all(), key=lambda row: (row["row_number"], row["generation"]["sample"] or 0))
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
