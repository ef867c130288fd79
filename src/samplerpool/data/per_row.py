"""Sampling parameters that a row brings along, and how they go with the run's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from samplerpool.config.sampling import sampling_params
from samplerpool.data.answers import row_seed
from samplerpool.data.rows import Row
from samplerpool.errors import BadRow, InvalidParameter


def request_params(params: Mapping[str, Any], row: Row, sample: int, seed: int) -> dict[str, Any]:
    """The parameters of one request: the run's, and over them the row's own.

    Args:
        seed: that the run has for it. A row with a seed of its own has that for its first sample, and for the others
            what follows from it, as they would be the same otherwise.
    """
    if not row.params:
        return {**params, "seed": seed}
    own = {name: value for name, value in row.params.items() if name != "num_return_sequences"}
    if "seed" in own and sample:
        own["seed"] = row_seed(own["seed"], 0, sample)
    return {**params, "seed": seed, **own}


def with_checked_params(rows: Iterable[Row], params: Mapping[str, Any], samples: int) -> Iterator[Row]:
    """The same rows; those whose parameters do not go with the run's carry an error.

    Args:
        params: the run's.
        samples: answers per row, which are the same for all of them.
    """
    for row in rows:
        if row.params and row.error is None:
            count = row.params.get("num_return_sequences", samples)
            if count != samples:
                row.error = BadRow(
                    f"Row {row.index} asks for {count} answers, and this run gives {samples}; run it with --n {count}."
                )
            else:
                try:
                    sampling_params(request_params(params, row, 0, 0))
                except InvalidParameter as error:
                    row.error = BadRow(f"Row {row.index}: {error.message}")
        yield row
