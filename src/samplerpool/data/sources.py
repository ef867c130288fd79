"""Which reader a path, a folder or a hub id gets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from samplerpool.data.arrow import ArrowFile, ParquetFile
from samplerpool.data.compression import compression_of, inner_suffix
from samplerpool.data.hub import open_hub, open_saved
from samplerpool.data.json_list import JsonList
from samplerpool.data.jsonl import JsonLines
from samplerpool.data.opening import Opening
from samplerpool.data.plain_text import SeparatedValues, TextLines
from samplerpool.data.records import JoinedRecords, Records
from samplerpool.errors import DataFileError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt")
COMPRESSED = (".gz", ".zst")
UNREAD = (
    ".xlsx",
    ".xls",
    ".xml",
    ".bz2",
    ".xz",
    ".zip",
    ".tar",
    ".7z",
    ".orc",
    ".avro",
    ".pkl",
    ".h5",
    ".db",
    ".sqlite",
)
"""Which hold data often enough that somebody may miss it."""
SOURCES = ("local", "hf_hub")

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")
_ABOUT_THE_DATA = ("dataset_info.json", "dataset_infos.json", "README.txt", "LICENSE.txt")


def open_source(
    path: str,
    *,
    source: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    note: Callable[[str], None] | None = None,
) -> Records:
    """The records of a file, a folder of files, or a data set of the hub.

    Args:
        path: where it is; ``owner/name`` on the hub.
        source: ``local`` or ``hf_hub``; None: what is here, else the hub.
        split: of a data set that has several; None for ``train`` on the hub, and for all files of a folder.
        streaming: read a data set of the hub without downloading it first.
        note: gets a sentence if files of a folder are left out, because they may be data in a format that is not read,
            or about a split that nobody has named.

    Raises:
        DataFileError: it is missing, unreadable, empty, or in no known format; or a library for it is missing.
    """
    place = Path(path).expanduser()
    is_here = os.path.lexists(place)
    if source == "hf_hub" or (source is None and not is_here and is_hub_id(path)):
        return open_hub(path, split=split or "train", streaming=streaming)
    if place.is_dir():
        return _open_folder(place, split, note)
    if split not in (None, "train"):
        raise DataFileError(f"{path} is one file and has no splits, so leave {split!r} out.", path=path)
    return open_file(place)


def is_hub_id(path: str) -> bool:
    """Whether this may name a data set of the hub: ``owner/name``, and not a file by its ending."""
    return _HUB_ID.fullmatch(path) is not None and not path.lower().endswith((*SUFFIXES, *COMPRESSED))


def open_file(path: Path) -> Records:
    """The records of one file or pipe, by its name's ending (before ``.gz`` or ``.zst``); any other name that is
    not known for another format means JSON, one object a line or a list.

    Raises:
        DataFileError
    """
    suffix = inner_suffix(path)
    if suffix in (".parquet", ".arrow", ".feather") and compression_of(path) is not None:
        raise DataFileError(
            f"{path} is compressed as a whole, which {suffix} files cannot be; unpack it.", path=str(path)
        )
    if suffix == ".parquet":
        return ParquetFile(path)
    if suffix in (".arrow", ".feather"):
        return ArrowFile(path)
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if suffix in (".csv", ".tsv"):
        return SeparatedValues(path, delimiter="\t" if suffix == ".tsv" else ",")
    if suffix == ".txt":
        return TextLines(path)
    opening = Opening(path)
    if b"\0" in opening.start or path.suffix.lower() in UNREAD:  # as no JSON has, whatever its encoding that we read
        opening.close()
        known = f"Known are {', '.join(SUFFIXES)}, also with {' or '.join(COMPRESSED)} behind them."
        raise DataFileError(f"{path} is no text, and of no format that is read. {known}", path=str(path))
    return (JsonList if opening.start.lstrip().startswith(b"[") else JsonLines)(path, opening)


def _open_folder(folder: Path, split: str | None, note: Callable[[str], None] | None) -> Records:
    """All data files in it and below, by name; those of one split carry its name, as on the hub."""
    if any((folder / name).is_file() for name in _SAVED_BY_DATASETS):
        return open_saved(folder, split, note)
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in found if _is_data(path.relative_to(folder))]
    if not files:
        raise DataFileError(
            f"The folder {folder} has no data files; known are {', '.join(SUFFIXES)}.", path=str(folder)
        )
    odd = [str(path.relative_to(folder)) for path in found if path.suffix.lower() in UNREAD]
    if odd and note is not None:
        note(
            f"{folder}: left out, as they are of no format that is read: {', '.join(odd[:5])}{', ...' * (len(odd) > 5)}"
        )
    if split is not None:
        files = [path for path in files if _is_of_split(path.relative_to(folder), split)]
    if not files:
        raise DataFileError(
            f"No data file in {folder} is of the split {split!r}: none has it as a word of its name.", path=str(folder)
        )
    return JoinedRecords([open_file(path) for path in files])


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return inner_suffix(path) in SUFFIXES and not hidden and path.name not in _ABOUT_THE_DATA


def _is_of_split(path: Path, split: str) -> bool:
    return split in re.split(r"[-_./\s]", path.with_suffix("").as_posix())
