"""Which rows of an input are answered, in which order, and what is made of their columns: one run's choice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from typing import Any

from samplerpool.config.arguments import DataArguments
from samplerpool.data.collection import DataCollection
from samplerpool.data.dataset_info import WAYS, DatasetName
from samplerpool.data.expressions import predicate, template_text
from samplerpool.data.messages import template_options_of
from samplerpool.data.rows import Row, with_system, with_template_options
from samplerpool.data.shuffle import shuffled
from samplerpool.errors import DataFileError

log = logging.getLogger(__name__)

CHOICE = ("select", "shuffle_seed", "limit")
"""Which rows are answered, and in which order."""
SAMPLE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Everything is optional; without any, all rows are answered in order, and their columns say what they mean.

    Args:
        converter: by name, see ``data.converters``; instead of it there may be one of the next two.
        messages_column: the column that holds the conversation, or the text that is one user turn.
        prompt_template: Jinja over the columns, whose text is one user turn; or ``@`` and a file that holds it.
        system: turn to be put before conversations that have none.
        template_options: keyword arguments for the chat template, by name (``enable_thinking``, ...).
        select: Jinja expression over the columns; only rows for which it is true. Where it cannot be told, the row
            becomes an error row.
        shuffle_seed: take the rows in the order that this number gives. They keep their numbers.
        limit: only so many, the first ones in that order.

    Raises:
        InvalidParameter: the expression is none, the template's file cannot be read, or the options are none.
    """

    converter: str | None = None
    messages_column: str | None = None
    prompt_template: str | None = None
    system: str | None = None
    select: str | None = None
    shuffle_seed: int | None = None
    limit: int | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt_template is not None:
            object.__setattr__(self, "prompt_template", template_text(self.prompt_template))
        if self.select is not None:
            predicate(self.select)
        object.__setattr__(self, "template_options", template_options_of(self.template_options))

    @classmethod
    def of(cls, arguments: DataArguments) -> Selection:
        """The one that these arguments name."""
        return cls(**{name: getattr(arguments, name) for name in (*WAYS, *CHOICE)})

    @classmethod
    def noted(cls, settings: Mapping[str, Any]) -> Selection:
        """The one whose ``settings`` these are, others that stand among them left aside: a template is text by now."""
        made = cls(**{each.name: settings[each.name] for each in fields(cls) if each.name != "prompt_template"})
        object.__setattr__(made, "prompt_template", settings["prompt_template"])
        return made

    def settings(self) -> dict[str, Any]:
        """By name, for a manifest."""
        return asdict(self)

    def open(self, dataset: DatasetName, *, note: Callable[[str], None] = log.info) -> DataCollection:
        """The data sets that are meant, read as this says.

        Raises:
            InvalidParameter, DataFileError: as ``DataCollection`` does; they are to be shuffled, and are a stream.
        """
        data = DataCollection.open(
            dataset,
            converter=self.converter,
            messages_column=self.messages_column,
            prompt_template=self.prompt_template,
            note=note,
        )
        if self.shuffle_seed is not None and not data.can_pick:
            data.close()
            raise DataFileError(
                "To shuffle, rows have to be picked by number, and this input can only be gone through (a compressed "
                "file, a stream). Unpack it, leave streaming out, or leave shuffle_seed out."
            )
        return data

    def rows(self, data: DataCollection) -> Iterator[Row]:
        """The rows to be answered. Each has its number among all rows of the input.

        Raises:
            DataFileError: a file cannot be read on.
        """
        return self._rows(data, self.shuffle_seed, self.limit)

    def sample(self, data: DataCollection, count: int) -> tuple[Iterator[Row], bool]:
        """Some of the rows to be answered: drawn from all of them, the same ones each time, where rows can be picked by
        number; else the first ones.

        Returns:
            At most ``count`` rows, and whether they were drawn.

        Raises:
            DataFileError: a file cannot be read on.
        """
        if self.limit is None and self.shuffle_seed is None and data.can_pick:
            return self._rows(data, SAMPLE_SEED, count), True
        if self.limit is None or self.shuffle_seed is not None or self.select is not None or not data.can_pick:
            # A shuffled order is as good as drawn; of a stream, or of the first that are selected, none can be picked.
            first = count if self.limit is None else min(count, self.limit)
            return self._rows(data, self.shuffle_seed, first), self.shuffle_seed is not None
        places = shuffled(min(self.limit, data.count_rows() or 0), SAMPLE_SEED)
        return self.rows_at(data, islice(places, count)), True

    def _rows(self, data: DataCollection, shuffle_seed: int | None, limit: int | None) -> Iterator[Row]:
        order = None if shuffle_seed is None else shuffled(data.count_rows() or 0, shuffle_seed)
        rows = data.rows(order, meant=None if self.select is None else predicate(self.select))
        if limit is not None:
            rows = islice(rows, limit)
        return self._made_ready(rows)

    def _made_ready(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows with what does not come of their columns."""
        if self.system is not None:
            rows = with_system(rows, self.system)
        return with_template_options(rows, self.template_options) if self.template_options else iter(rows)

    def rows_at(self, data: DataCollection, numbers: Iterable[int]) -> Iterator[Row]:
        """Rows that were chosen before, by their numbers; of a stream all rows, since none can be picked.

        Raises:
            DataFileError: a file cannot be read on.
        """
        total = data.count_rows() if data.can_pick else None
        rows = data.rows(None if total is None else (number for number in numbers if number < total))
        return self._made_ready(rows)

    def count(self, data: DataCollection) -> int | None:
        """How many these are; None where that is not known before they have been read."""
        total = None if self.select is not None else data.count_rows()
        return total if total is None or self.limit is None else min(total, self.limit)


ALL = Selection()
"""All rows, in order."""
