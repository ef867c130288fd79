"""``DataEngine``: data sets as a torch ``Dataset``.

A client must not load torch, yet names this class (``from samplerpool import *`` does). So torch comes with the first
engine that is made, not with this module: ``DataEngine(...)`` makes an object of a subclass that has torch's
``Dataset``, or for a stream its ``IterableDataset``, among its bases. That is real inheritance, which any check of
torch's or of the user's sees, whenever torch is imported. What needs no torch uses ``data.collection`` itself.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, SupportsIndex, cast, overload

from samplerpool.config.arguments import DataArguments
from samplerpool.data.collection import DataCollection
from samplerpool.data.dataset_info import DatasetInfo, DatasetName, dataset_infos
from samplerpool.data.entries import FORMS, Form
from samplerpool.data.rows import Row
from samplerpool.data.selection import CHOICE
from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.types import Sample

log = logging.getLogger(__name__)


class DataEngine:
    """Data sets as one torch map-style ``Dataset`` of samples, or as an ``IterableDataset`` where they are streams.

    Files are never loaded whole: a text file's rows are read from their places, which are found in one pass at the
    first access by number; Arrow files are memory-mapped; of Parquet files some row groups are kept, so going through
    them in order is fast, and in random order slow if they are larger than that.

    Args:
        dataset: the path of a file (JSON, JSONL, CSV, TSV, Parquet, Arrow, text) or of a folder of them; a hub id;
            a YAML file of named data sets (here or on the hub), or a mapping as such a file holds it:
            ``{"name": {"path", "source", "split", "converter", "size", "weight", "streaming"}}``;
            or ``DataArguments``.
        converter: for the data sets that name none; None: chosen by each row's columns, which is logged.
        form: ``whole``: samples as they are. ``inference``: the assistant's turn at the end is taken off and kept as
            ``reference``. ``training``: one sample for each supervised turn of the assistant's, which it ends with;
            all rows are converted once to count them. Rows of a batch's output that carry an error give none.

    Yields and gives samples: ``messages`` in the v1 form (or ``chosen_messages`` and ``rejected_messages``),
    ``tools`` as JSON text, columns that the converter had no use for, and ``_dataset_name``.

    Raises:
        InvalidParameter: settings that cannot be; all of them are named.
        DataFileError: a file is missing, unreadable or in no known format; or a library for it is missing.
        BadRow, RenderError: (at access) a row is broken; file, row and column are named.
    """

    streaming: bool
    _infos: list[DatasetInfo]
    _form: Form
    _collection: DataCollection

    def __new__(cls, dataset: DatasetName, *, converter: str | None = None, form: Form = "whole") -> DataEngine:
        if form not in FORMS:
            raise InvalidParameter(f"form must be one of {', '.join(FORMS)}, not {form!r}.")
        if isinstance(dataset, DataArguments) and (chosen := [c for c in CHOICE if getattr(dataset, c) is not None]):
            raise InvalidParameter(
                f"{' and '.join(chosen)}: which rows are to be answered. DataEngine gives all samples; leave it out."
            )
        return _make(cls, dataset_infos(dataset, converter=converter), form)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order; of a stream, the share of this worker of torch's ``DataLoader``."""
        samples = iter(self._collection)
        if not self.streaming:
            return samples
        worker = _worker_info()
        return samples if worker is None else islice(samples, worker.id, None, worker.num_workers)

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError("This data set is a stream: it has no length.")
        return len(self._collection)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Sample: ...
    @overload
    def __getitem__(self, index: slice | Sequence[SupportsIndex]) -> list[Sample]: ...
    def __getitem__(self, index: SupportsIndex | slice | Sequence[SupportsIndex]) -> Sample | list[Sample]:
        """A sample, or several by a slice or a list of numbers."""
        if self.streaming:
            raise UsageError("This data set is a stream: its samples can be gone through, but not picked.")
        if isinstance(index, slice):
            return [self._collection[place] for place in range(*index.indices(len(self)))]
        if isinstance(index, Sequence):
            return [self._collection[operator.index(place)] for place in index]
        return self._collection[operator.index(index)]

    def rows(self) -> Iterator[Row]:
        """What ``batch_infer`` goes through: broken rows carry their error instead of raising it."""
        return self._collection.rows()

    def close(self) -> None:
        """Free what is held. Idempotent, and not needed: nothing is held that does not end with the object."""
        self._collection.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _make, (type(self).__mro__[1], self._infos, self._form)


def _make(cls: type[DataEngine], infos: list[DatasetInfo], form: Form) -> DataEngine:
    made: DataEngine = object.__new__(_with_torch(cast(Any, cls), infos[0].streaming))
    made.streaming = infos[0].streaming
    made._infos = infos
    made._form = form
    made._collection = DataCollection(infos, form=form)
    return made


@cache
def _with_torch(cls: Any, streaming: bool) -> Any:
    from torch.utils.data import Dataset, IterableDataset

    base: Any = IterableDataset if streaming else Dataset
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(base)(cls.__name__, (cls, base), namespace)


def _worker_info() -> Any:
    from torch.utils.data import get_worker_info

    return get_worker_info()
