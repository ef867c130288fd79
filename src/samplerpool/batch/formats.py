"""What an output file is written as. The journal knows nothing of it: putting the file together converts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

from samplerpool.batch.manifest import Manifest
from samplerpool.data.compression import Compression, check_compression, compressed, compression_of, inner_suffix
from samplerpool.data.parquet_out import check_parquet, write_parquet
from samplerpool.errors import UsageError

FORMS = ("jsonl", "parquet")
_NOT_WRITTEN = {
    ".csv",
    ".tsv",
    ".arrow",
    ".feather",
    ".xlsx",
    ".xls",
    ".yaml",
    ".yml",
    ".pkl",
    ".db",
    ".sqlite",
    ".zip",
}
_NOT_WRITTEN |= {".bz2", ".xz", ".7z", ".tar", ".tgz", ".lz4", ".br"}
"""Endings that mean a format which is not written. Any other one, that of ``answers.json`` say, means JSON Lines."""

Lines = Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class OutputFormat:
    """A format.

    Args:
        form: one of ``FORMS``.
        compression: of the file as a whole.
    """

    form: str = "jsonl"
    compression: Compression | None = None

    @classmethod
    def of(cls, path: Path, form: str | None = None) -> Self:
        """The format that a file's name asks for, or ``form`` does; how it is compressed, its name alone says.

        Raises:
            UsageError: the name means a format that is not written, or another one than ``form``.
            DataFileError: a library for it is missing.
        """
        compression, suffix = compression_of(path), inner_suffix(path)
        if form is None:
            form = "parquet" if suffix == ".parquet" else "jsonl"
            if suffix in _NOT_WRITTEN or path.suffix.lower() in _NOT_WRITTEN:
                raise UsageError(
                    f"The output {path} cannot be written as {path.suffix}; name it .jsonl, .jsonl.gz, .jsonl.zst or "
                    f".parquet, or say what it is to be with --output-format ({', '.join(FORMS)})."
                )
        if form == "parquet" and compression is not None:
            raise UsageError(f"The output {path} cannot be both: Parquet is compressed inside. Name it .parquet.")
        if suffix == ".parquet" and form != "parquet":
            raise UsageError(f"The output {path} is named as Parquet, and --output-format is {form}; name it .jsonl.")
        if form == "parquet":
            check_parquet(path)
        if compression is not None:
            check_compression(compression, path)
        return cls(form, compression)

    @property
    def name(self) -> str:
        """For the manifest."""
        return self.form if self.compression is None else f"{self.form}.{self.compression}"

    def most_bytes(self, text_bytes: int, rows: int) -> int:
        """About how large a file can become.

        Args:
            text_bytes: of its rows as JSON Lines.
        """
        return text_bytes

    def write(self, lines: Lines, file: BinaryIO, manifest: Manifest) -> None:
        """Write a file.

        Args:
            lines: gives the rows as JSON Lines, in order, the same ones each time.
            manifest: of their run.

        Raises:
            OSError
        """
        if self.form == "parquet":
            write_parquet(lines, file)
            return
        target: IO[bytes] = file if self.compression is None else compressed(file, self.compression)
        for line in lines():
            target.write(line)
        if target is not file:
            target.close()


class Hashed(io.RawIOBase):
    """A file to be written from its beginning on, and a hash of what has been written."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()
