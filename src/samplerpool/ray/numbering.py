"""Row numbers for data sets of Ray Data, which has none by itself."""

from __future__ import annotations

from typing import Any

from samplerpool.errors import UsageError

ROW_NUMBER = "row_number"


def with_row_numbers(dataset: Any, column: str = ROW_NUMBER) -> Any:
    """The same rows with their place in the data set, from 0, in a column of its own.

    Exact, and the same each time for the same input: the data set is materialized in its own order (for files, that
    of their names and of the lines in them), its blocks are counted, and each block is numbered from where it begins.

    Args:
        dataset: a ``ray.data.Dataset``.
        column: new.

    Returns:
        A materialized data set.

    Raises:
        UsageError: it has such a column already.
    """
    import ray

    dataset.context.execution_options.preserve_order = True
    whole = dataset.materialize()
    if column in (whole.columns() or ()):
        raise UsageError(f"The data set has a column {column!r} already; choose another name, or use that one.")
    blocks = whole.to_arrow_refs()
    count, number = ray.remote(_count), ray.remote(_numbered)
    sizes = ray.get([count.remote(block) for block in blocks])
    begins = [sum(sizes[:at]) for at in range(len(sizes))]
    return ray.data.from_arrow_refs(
        [number.remote(block, begin, column) for block, begin in zip(blocks, begins, strict=True)]
    )


def _count(table: Any) -> int:
    return int(table.num_rows)


def _numbered(table: Any, begin: int, column: str) -> Any:
    return table.append_column(column, [list(range(begin, begin + table.num_rows))])
