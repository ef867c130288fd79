"""Data sets, opened: their samples and rows, one after the other or by number. Knows nothing of torch."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from samplerpool.data.converters import at_place, sample_of
from samplerpool.data.dataset_info import DEFAULT_NAME, DatasetInfo, DatasetName, dataset_infos
from samplerpool.data.entries import Form, inference_entry, is_failed_answer, training_entries
from samplerpool.data.mixture import ONCE, Share
from samplerpool.data.records import Record
from samplerpool.data.rows import Row, row_of
from samplerpool.data.sources import open_source
from samplerpool.data.unchanged import Unchanged
from samplerpool.errors import BadRow, RenderError
from samplerpool.types import Sample

log = logging.getLogger(__name__)

Predicate = Callable[[Mapping[str, Any]], bool]
"""Of a row's columns; it may raise ``BadRow``."""


class Entry(NamedTuple):
    """A sample with the record that it was made of, or what was wrong with that."""

    record: Record
    sample: Sample | None
    error: BadRow | RenderError | None = None


class DataCollection:
    """Several data sets as one, in the order in which they were named.

    Args:
        infos: the data sets.
        form: what their samples are for.
        note: gets a sentence when a converter is chosen by a row's columns, or files of a folder are left out.

    Raises:
        DataFileError: one of them cannot be read.
    """

    def __init__(
        self, infos: Sequence[DatasetInfo], *, form: Form = "whole", note: Callable[[str], None] = log.info
    ) -> None:
        self._members: list[_Member] = []
        self._ends: list[int] | None = None
        try:
            for info in infos:
                self._members.append(_Member(info, form, note))
        except BaseException:
            self.close()
            raise
        self._unchanged = Unchanged(self.paths)

    @classmethod
    def open(
        cls,
        dataset: DatasetName,
        *,
        converter: str | None = None,
        messages_column: str | None = None,
        prompt_template: str | None = None,
        note: Callable[[str], None] = log.info,
    ) -> Self:
        """The data sets that ``dataset_infos`` makes of these arguments."""
        infos = dataset_infos(
            dataset, converter=converter, messages_column=messages_column, prompt_template=prompt_template
        )
        return cls(infos, note=note)

    @property
    def paths(self) -> list[Path]:
        """All files that are read."""
        return [path for member in self._members for path in member.paths]

    def rows(self, order: Iterable[int] | None = None, *, meant: Predicate | None = None) -> Iterator[Row]:
        """The rows, numbered through; those that are broken carry their error.

        Args:
            order: their numbers, in the order in which they are wanted; None: all, one after the other.
            meant: of their columns, whether a row is wanted; where it raises, the row carries that error.

        Raises:
            DataFileError: a file cannot be read on, or changed meanwhile.
        """
        found = self._all_entries() if order is None else map(self._entry, order)
        for number, member, entry in found:
            if entry.sample is None:
                self._unchanged.check()  # else half a line would be an error row
            row = member.row(entry, number, meant)
            if row is not None:
                yield row
        self._unchanged.check()

    def count_rows(self) -> int | None:
        """How many ``rows`` gives, by a quick pass over the files; None if they can be read only once."""
        counts = [member.count() for member in self._members]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def can_pick(self) -> bool:
        """Whether rows can be had by number."""
        return all(member.can_pick for member in self._members)

    def __iter__(self) -> Iterator[Sample]:
        """All samples.

        Raises:
            BadRow, RenderError: a row is broken; it is named.
            DataFileError: a file cannot be read on.
        """
        for member in self._members:
            for entry in member.entries():
                yield member.sample(entry)

    def __len__(self) -> int:
        return self._bounds()[-1]

    def _all_entries(self) -> Iterator[tuple[int, _Member, Entry]]:
        index = 0
        for member in self._members:
            for entry in member.entries():
                yield index, member, entry
                index += 1

    def _entry(self, place: int) -> tuple[int, _Member, Entry]:
        ends = self._bounds()
        number = bisect_right(ends, place)
        member = self._members[number]
        return place, member, member.entry(place - (ends[number - 1] if number else 0))

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            IndexError: there are not so many.
            BadRow, RenderError, DataFileError: as for going through all.
        """
        ends = self._bounds()
        place = index + ends[-1] if index < 0 else index
        if not 0 <= place < ends[-1]:
            raise IndexError(f"There is no sample {index}; there are {ends[-1]}.")
        _, member, entry = self._entry(place)
        return member.sample(entry)

    def close(self) -> None:
        """Free what is held. Idempotent."""
        for member in self._members:
            member.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bounds(self) -> list[int]:
        if self._ends is None:
            self._ends = list(accumulate(len(member) for member in self._members))
        return self._ends


class _Member:
    """One data set: its records, how they are converted, and how many of them are taken."""

    def __init__(self, info: DatasetInfo, form: Form, note: Callable[[str], None]) -> None:
        self._info = info
        self._form = form
        self._share = Share(info.size, ONCE if info.weight == 1 else Fraction(str(info.weight)))
        self._converter = info.make_converter(note)
        self._records = open_source(
            info.path, source=info.source, split=info.split, streaming=info.streaming, note=note
        )
        self._entry_ends: array[int] | None = None
        path = Path(info.path).expanduser()
        self._folder = str(path if path.is_dir() else path.parent)

    @property
    def paths(self) -> Sequence[Path]:
        return self._records.paths

    def entries(self) -> Iterator[Entry]:
        number = 0
        for record in islice(self._records, self._share.size):
            for entry in self._entries(record):
                for _ in range(self._share.repeats(number)):
                    yield entry
                number += 1

    def entry(self, index: int) -> Entry:
        number = self._share.row(index)
        if self._form != "training":
            (entry,) = self._entries(self._records[number])
            return entry
        ends = self._training_ends()
        record = bisect_right(ends, number)
        return self._entries(self._records[record])[number - (ends[record - 1] if record else 0)]

    def __len__(self) -> int:
        if self._form == "training":
            ends = self._training_ends()
            return self._share.total(ends[-1] if ends else 0)
        return self._share.total(self._share.rows(len(self._records)))

    def count(self) -> int | None:
        streamed = self._info.streaming or self._form == "training"
        rows = None if streamed else self._records.count()
        return None if rows is None else self._share.total(self._share.rows(rows))

    @property
    def can_pick(self) -> bool:
        return self._records.can_pick and not self._info.streaming

    def close(self) -> None:
        self._records.close()

    def sample(self, entry: Entry) -> Sample:
        if entry.sample is None:
            assert entry.error is not None
            raise entry.error
        return {**entry.sample, "_dataset_name": self._info.name}

    def row(self, entry: Entry, index: int, meant: Predicate | None = None) -> Row | None:
        """The entry as a row, unless it is not meant. What could not be read may have been meant."""
        columns = entry.record.columns
        if self._info.name != DEFAULT_NAME:
            columns = {**columns, "_dataset_name": self._info.name}
        if meant is not None and entry.record.error is None:
            try:
                if not meant(columns):
                    return None
            except BadRow as error:
                return Row(index, columns, error=at_place(error, entry.record.place))
        if entry.sample is None:
            return Row(index, columns, error=entry.error)
        return row_of(entry.sample, index, entry.record.place, columns, entry.record.folder or self._folder)

    def _entries(self, record: Record) -> list[Entry]:
        """What a record gives: one entry, or in the form for training one for each turn that is learned from."""
        if self._form == "training" and is_failed_answer(record.columns):
            return []
        if record.error is not None:
            return [Entry(record, None, record.error)]
        try:
            sample = sample_of(self._converter, record.columns)
            if self._form == "training":
                return [Entry(record, each) for each in training_entries(sample)]
            return [Entry(record, inference_entry(sample) if self._form == "inference" else sample)]
        except (BadRow, RenderError) as error:
            return [Entry(record, None, at_place(error, record.place))]

    def _training_ends(self) -> array[int]:
        """Entries up to and with each record: found by converting all of them once."""
        if self._entry_ends is None:
            ends, total = array("Q"), 0
            for record in islice(self._records, self._share.size):
                entries = self._entries(record)
                if entries and (error := entries[0].error):  # how many it would have been, nobody knows
                    raise error
                total += len(entries)
                ends.append(total)
            self._entry_ends = ends
        return self._entry_ends
