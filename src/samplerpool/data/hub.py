"""Data sets of the Hugging Face hub, and folders that ``datasets`` wrote, through that library (extra ``data``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from samplerpool.data.records import Record
from samplerpool.errors import DataFileError


class LibraryRecords:
    """The records of a ``datasets.Dataset``, which is memory-mapped, or of a ``datasets.IterableDataset``.

    Args:
        dataset: either of them.
        name: for places.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        self._name = name

    @property
    def paths(self) -> Sequence[Path]:
        return [Path(each["filename"]) for each in getattr(self._dataset, "cache_files", ())]

    def __iter__(self) -> Iterator[Record]:
        for number, columns in enumerate(self._dataset, 1):
            yield self._record(number, columns)

    def __len__(self) -> int:
        if not hasattr(self._dataset, "__len__"):
            raise DataFileError(f"The data set {self._name} is a stream: its rows cannot be counted or picked.")
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        len(self)
        return self._record(index + 1, self._dataset[index])

    def count(self) -> int | None:
        return len(self) if self.can_pick else None

    @property
    def can_pick(self) -> bool:
        return hasattr(self._dataset, "__len__")

    def close(self) -> None:
        """Nothing is held that does not end with the object."""

    def _record(self, number: int, columns: dict[str, Any]) -> Record:
        return Record(f"{self._name}, row {number}", columns)


def open_hub(name: str, *, split: str, streaming: bool) -> LibraryRecords:
    """A data set of the hub, downloaded into the library's cache or read as a stream.

    Args:
        name: its id, ``owner/name``.

    Raises:
        DataFileError: it is not there, cannot be reached, or ``datasets`` is not installed.
    """
    datasets = _datasets(f"{name}, a data set of the hub,")
    try:
        dataset = datasets.load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # of the library, of the hub's client, of the network: there is no common class
        raise DataFileError(
            f"There is no file or folder {name} here, and as a data set of the hub it cannot be loaded: "
            f"{_reason(error)}",
            path=name,
        ) from error
    return LibraryRecords(dataset, name)


def open_saved(path: Path, split: str | None, note: Callable[[str], None] | None = None) -> LibraryRecords:
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote.

    Args:
        split: which one of a ``DatasetDict``; None for ``train``, or the only one.
        note: gets a sentence where nobody has said which of several.

    Raises:
        DataFileError: it is broken, has no such split, or ``datasets`` is not installed.
    """
    datasets = _datasets(f"{path}, written by datasets,")
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataFileError(f"The data set in {path} cannot be read: {_reason(error)}", path=str(path)) from error
    if isinstance(dataset, dict):
        wanted = split or (next(iter(dataset)) if len(dataset) == 1 else "train")
        if wanted not in dataset:
            raise DataFileError(
                f"The data set in {path} has no split {wanted!r}; it has: {', '.join(dataset)}.", path=str(path)
            )
        if split is None and len(dataset) > 1 and note is not None:
            note(f"{path}: the split {wanted}, of {', '.join(dataset)}; a YAML file can name another one")
        dataset = dataset[wanted]
    elif split is not None:
        raise DataFileError(f"The data set in {path} has no splits, so leave {split!r} out.", path=str(path))
    return LibraryRecords(dataset, path.name)


def download(repository: str, file: str) -> Path:
    """One file of a data set of the hub.

    Raises:
        DataFileError: it cannot be had.
    """
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo_id=repository, filename=file, repo_type="dataset"))
    except Exception as error:
        raise DataFileError(
            f"There is no file {repository}/{file} here, and it cannot be had from the hub: {_reason(error)}",
            path=f"{repository}/{file}",
        ) from error


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataFileError(
            f"Reading {what} needs the library datasets; install it with: pip install 'samplerpool[data]'"
        ) from error
    return datasets


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".") + "."
