"""What an output file is written as. The journal knows nothing of it: putting the file together converts."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

from samplerpool.batch.manifest import Manifest
from samplerpool.config.arguments import OUTPUT_FORMS
from samplerpool.data.compression import Compression, check_compression, compressed, compression_of, inner_suffix
from samplerpool.data.openai_results import AnsweredBy, result_lines
from samplerpool.data.parquet_out import check_parquet, write_parquet
from samplerpool.errors import UsageError

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

ENVELOPE_BYTES = 800
"""What stands around an answer in OpenAI's form; its log-probabilities take four times what they do in ours."""

Lines = Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class OutputFormat:
    """A format.

    Args:
        form: one of ``OUTPUT_FORMS``; ``openai`` means lines of an OpenAI batch output file.
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
                    f".parquet, or say what it is to be with --output-format ({', '.join(OUTPUT_FORMS)})."
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
        return text_bytes if self.form != "openai" else 4 * text_bytes + ENVELOPE_BYTES * rows

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
        rows = lines() if self.form == "jsonl" else result_lines(lines(), _answered_by(manifest))
        for line in rows:
            target.write(line)
        if target is not file:
            target.close()


def _answered_by(manifest: Manifest) -> AnsweredBy:
    model = json.dumps(manifest.model, sort_keys=True, default=str)
    return AnsweredBy(
        model=str(manifest.model.get("name") or "samplerpool"),
        fingerprint=f"fp_{hashlib.blake2b(model.encode(), digest_size=5).hexdigest()}",
        created=manifest.created,
        run_seed=manifest.run_seed,
    )


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
