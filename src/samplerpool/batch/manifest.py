"""What a batch run is, noted before its first row, so that one that goes on later is the same run.

Whatever can change an answer is in it, but for the input's rows: each record of the journal has the hash of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from samplerpool.data.messages import NOW
from samplerpool.errors import BatchError

FORMAT = 1
SHOWN_CHARACTERS = 60
_NOT_COMPARED = frozenset(
    ("input_digest", "run_seed", "frozen_date", "source", "overwrite", "outputs", "format", "created")
)
"""The seed and the date are taken from the manifest; a file may have another name by now."""


@dataclass(frozen=True)
class Manifest:
    """One run.

    Args:
        source: the input, as it was named.
        input_bytes: of the input's files together; None where that is not known.
        converter: by name.
        system: turn that was put before conversations that have none.
        limit: rows to be answered; None for all. This, ``converter``, ``system``, ``template_options`` and the four
            from ``messages_column`` on are a ``Selection``.
        params: sampling parameters that were given, but for the seed.
        model: fingerprint of what the workers run (``fingerprint`` of their descriptions).
        version: of samplerpool.
        run_seed: from which each answer's seed is derived.
        overwrite: what stood in the output's place is to be replaced.
        input_digest: of the rows that the output was made of, when it is there.
        outputs: hashes of the outputs that were put together; more than one where errors were tried again.
        frozen_date: date and time, in ISO form, that chat templates are told; None in older manifests.
        output_format: by name, see ``batch.formats``.
        created: when the run began, in seconds since 1970.
    """

    source: str
    input_bytes: int | None
    converter: str | None
    system: str | None
    limit: int | None
    params: Mapping[str, Any]
    model: Mapping[str, Any]
    version: str
    run_seed: int
    overwrite: bool = False
    outputs: Sequence[str] = ()
    format: int = FORMAT
    input_digest: str | None = None
    messages_column: str | None = None
    prompt_template: str | None = None
    select: str | None = None
    shuffle_seed: int | None = None
    output_format: str = "jsonl"
    created: int = 0
    frozen_date: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Answers per row."""
        return int(self.params.get("num_return_sequences") or 1)

    @property
    def date_option(self) -> Mapping[str, str]:
        """As an option of chat templates: the date that they are told."""
        return {} if self.frozen_date is None else {NOW: self.frozen_date}

    def changes(self, now: Manifest) -> list[str]:
        """What is different now, a sentence each."""
        before, after = _flat(asdict(self)), _flat(asdict(now))
        names = [name for name in {**before, **after} if name.partition(".")[0] not in _NOT_COMPARED]
        return [
            f"{name}: was {_shown(before.get(name), after.get(name))}, is {_shown(after.get(name), before.get(name))}"
            for name in names
            if before.get(name) != after.get(name)
        ]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The manifest in a file.

        Raises:
            BatchError: there is none, or it cannot be read.
        """
        try:
            data = json.loads(path.read_bytes())
            known = {f.name for f in fields(cls)}
            if data.get("format") != FORMAT:
                raise ValueError(f"format {data.get('format')!r} is not {FORMAT}")
            manifest = cls(**{name: value for name, value in data.items() if name in known})
            return replace(manifest, outputs=tuple(manifest.outputs))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BatchError(
                f"The run's manifest {path} cannot be read ({reason}), so it is not known what the journal beside it "
                "is of. Move both away, or choose another output.",
                path=str(path),
            ) from error

    def write(self, path: Path) -> None:
        """Put it in its place, whole and on disk.

        Raises:
            OSError
        """
        partial = path.with_name(path.name + ".new")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1, default=str)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk hold which files are in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = item
    return found


def _shown(value: object, beside: object) -> str:
    """As JSON; of a long text, where it begins to differ from another."""
    text, other = (json.dumps(each, default=str, ensure_ascii=False) for each in (value, beside))
    if len(text) <= SHOWN_CHARACTERS:
        return text
    pairs = enumerate(zip(text, other, strict=False))
    same = next((place for place, (one, another) in pairs if one != another), min(len(text), len(other)))
    begin = max(0, same - SHOWN_CHARACTERS // 3) if same + 10 > SHOWN_CHARACTERS else 0
    end = begin + SHOWN_CHARACTERS - 3
    return ("..." if begin else "") + text[begin:end] + ("..." if end < len(text) else "")
