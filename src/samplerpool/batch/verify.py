"""Whether an output is what its run makes of its input: some of its rows are sampled once more, and compared."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from samplerpool.batch.journal import row_hash
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.near_tie import NEAR_TIE, Ending, NearTies
from samplerpool.batch.results import Results, generation_of
from samplerpool.batch.runner import StopSwitch, run_batch
from samplerpool.batch.tally import Progress
from samplerpool.client.connection import PoolConnection
from samplerpool.data.answers import RowResult, error_text, output_row, row_seed
from samplerpool.data.json_text import from_json, to_json
from samplerpool.data.media import with_media_read
from samplerpool.data.per_row import request_params
from samplerpool.data.rows import Row
from samplerpool.errors import BadRow, SamplerPoolError
from samplerpool.wire.messages import ChatPrompt

Finding = Literal["equal", "near-tie", "differs"]
OURS = ("messages", "reference", "generation")
"""Columns of an output row that are not the input's."""
SHOWN_CHARACTERS = 24


@dataclass(frozen=True)
class Kept:
    """An answer as the output has it."""

    index: int
    sample: int
    columns: Mapping[str, Any]
    hashed: bytes | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of an answer when it was asked for once more.

    Args:
        row, sample: which one.
        finding: ``near-tie``: it differs, because candidates were nearly level where it begins to.
        character: the first one of its text that differs.
        token: number of the token, from 0, at which the answers part; of another difference, the last that it may be.
        detail: what is different, for people.
    """

    row: int
    sample: int
    finding: Finding
    character: int | None = None
    token: int | None = None
    detail: str = ""


def choose_answers(results: Results, count: int, seed: int) -> list[Kept]:
    """Some of the answers, the same ones for the same seed; ordered by row. Error rows are not among them.

    Raises:
        BadRow, DataFileError: what stands there is no output row.
    """
    chosen: list[Kept] = []
    for place in random.Random(seed).sample(range(len(results)), len(results)):
        if len(chosen) == count:
            break
        columns = results[place]
        generation = generation_of(columns)
        if generation.get("error") is None:
            kept = Kept(generation["index"], generation.get("sample") or 0, columns, results.input_hash(place))
            chosen.append(kept)
    return sorted(chosen, key=lambda kept: (kept.index, kept.sample))


def verify(
    connection: PoolConnection,
    rows: Iterable[Row],
    kept: Sequence[Kept],
    manifest: Manifest,
    *,
    tolerance: float = NEAR_TIE,
    fetch_media: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    stop: StopSwitch | None = None,
) -> list[Verdict]:
    """Ask for answers once more, with the run's seed and parameters, and compare.

    Args:
        rows: of the run's input, in any order; others than those of the answers may be among them.
        kept: the answers.
        tolerance: see ``NearTies``.
        fetch_media, on_progress, stop: as for ``run_batch``.

    Returns:
        A verdict an answer, in their order; fewer if it was stopped.

    Raises:
        BatchError, UnsupportedParameter: as for ``run_batch``.
    """
    wanted = {(one.index, one.sample): one for one in kept}
    found: dict[tuple[int, int], RowResult] = {}

    def note(result: RowResult) -> None:
        found[result.row.index, result.sample] = result

    summary = run_batch(
        connection,
        _to_ask(rows, kept, manifest.samples),
        params=manifest.params,
        run_seed=manifest.run_seed,
        frozen_date=manifest.frozen_date,
        on_result=note,
        on_progress=on_progress,
        stop=stop,
        fetch_media=fetch_media,
    )
    ties = NearTies(connection, manifest.params, tolerance)
    verdicts: list[Verdict] = []
    for key, one in wanted.items():
        if key in found:
            verdict = compare(one, found[key], manifest.samples)
            if verdict.character is not None:
                if stop is not None and stop.pressed:
                    continue  # finding out why may take as long as the answer
                verdict = _explained(verdict, one, found[key], manifest, ties, fetch_media)
            verdicts.append(verdict)
        elif summary.complete:
            verdicts.append(Verdict(*key, "differs", detail="the input has no such row"))
    return verdicts


def _to_ask(rows: Iterable[Row], kept: Sequence[Kept], samples: int) -> Iterator[Row]:
    """Of the input's rows those that are meant, each with the samples of it that are."""
    missing = Counter(one.index for one in kept)
    meant = {(one.index, one.sample) for one in kept}
    for row in rows:
        if missing.pop(row.index, 0):
            row.finished = frozenset(n for n in range(samples) if (row.index, n) not in meant)
            yield row
        if not missing:
            return


def compare(kept: Kept, now: RowResult, samples: int) -> Verdict:
    """What is different between an answer in the output and the one that has come now.

    Args:
        samples: answers per row in that run.
    """
    key = (kept.index, kept.sample)
    if kept.hashed is not None and kept.hashed != row_hash(now.row.columns):
        return Verdict(*key, "differs", detail="the input row is not the one that was answered")
    if now.error is not None:
        return Verdict(*key, "differs", detail=f"now it fails: {error_text(now.error)}")
    before, after = _comparable(kept.columns), _comparable(output_row(now, samples))
    if before == after:
        return Verdict(*key, "equal")
    own = [name for name in {**before, **after} if name not in OURS and before.get(name) != after.get(name)]
    if own or _question(before) != _question(after):
        names = ", ".join(map(repr, own)) or "'messages'"
        return Verdict(*key, "differs", detail=f"the input row is not the one that was answered: {names}")
    old, new = (_ending(columns["generation"]) for columns in (before, after))
    parting = old.parting(new)
    if parting is None:  # the answer is the same, and what stands around it is not
        other = [name for name in OURS if before.get(name) != after.get(name)]
        return Verdict(*key, "differs", detail=f"the answer is the same, but not {', '.join(map(repr, other))}")
    was, now_is = (_shown(ending, parting) for ending in (old, new))
    return Verdict(*key, "differs", parting, detail=f"was {was}, is {now_is}")


def _explained(
    verdict: Verdict, kept: Kept, now: RowResult, manifest: Manifest, ties: NearTies, fetch_media: bool
) -> Verdict:
    """A verdict on a text that differs, with what the engine says of it."""
    row, wanted = now.row, _ending(generation_of(kept.columns))
    try:
        messages = with_media_read(row.messages, folder=row.folder, fetch=fetch_media)
        options = {**manifest.date_option, **row.template_options}
        seed = row_seed(manifest.run_seed, kept.index, kept.sample)
        if row.params:
            own = request_params(manifest.params, row, kept.sample, seed)
            ties, seed = ties.with_params(own), own["seed"]
        told = ties.explain(ChatPrompt(messages, row.tools, options), seed, wanted)
    except SamplerPoolError as error:
        detail = f"{verdict.detail}; whether at a near-tie, cannot be told: {error_text(error)}"
        return Verdict(kept.index, kept.sample, "differs", verdict.character, detail=detail)
    finding: Finding = "near-tie" if told.near_tie else "differs"
    return Verdict(kept.index, kept.sample, finding, verdict.character, told.token, verdict.detail)


def _comparable(columns: Mapping[str, Any]) -> dict[str, Any]:
    """An output row as it is read back, without log-probabilities, whose last digits are as the batch had them."""
    plain: dict[str, Any] = from_json(to_json(dict(columns)))
    generation = plain.get("generation")
    if isinstance(generation, dict):
        generation.pop("logprobs", None)
    return plain


def _question(columns: Mapping[str, Any]) -> Any:
    messages = columns.get("messages")
    return messages[:-1] if isinstance(messages, list) else messages


def _ending(generation: Mapping[str, Any]) -> Ending:
    try:
        return Ending(str(generation["text"]), str(generation["finish_reason"]), int(generation["completion_tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRow(f'An output row\'s "generation" has no {error}.') from error


def _shown(ending: Ending, at: int) -> str:
    """A few words of an answer, from there on."""
    piece = ending.text[at : at + SHOWN_CHARACTERS]
    if not piece:
        return f"the end ({ending.completion_tokens} tokens, {ending.finish_reason})"
    return repr(piece + ("..." if len(ending.text) > at + SHOWN_CHARACTERS else ""))
