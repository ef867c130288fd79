"""The report as one page of HTML. Whatever comes from rows is untrusted: it reaches the page through Jinja's escaping
alone, with characters that a page cannot hold made visible, and the page's policy runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from samplerpool.batch.manifest import Manifest
from samplerpool.batch.report.charts import length_chart, rate_chart, worker_chart
from samplerpool.batch.report.choice import TAGS
from samplerpool.batch.report.counts import Counts, Duplicates, Lengths
from samplerpool.batch.report.facts import Reading
from samplerpool.batch.report.source import ReportSource
from samplerpool.batch.report.timeline import Pause, Span, pauses, running_s, spans, worker_uses
from samplerpool.batch.tally import duration
from samplerpool.data.json_text import to_json

GENERATOR = "samplerpool batch report"
BAD_TAGS = frozenset(("error", "empty", "not understood"))
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Found:
    """What a report tells of an output.

    Args:
        rows: those to be read, by their places.
        repeated: the text of each of the largest groups of duplicates, by the place of its first row.
    """

    source: ReportSource
    counts: Counts
    duplicates: Duplicates
    rows: Mapping[int, Reading]
    repeated: Mapping[int, str]


def page(found: Found, made: datetime) -> str:
    """The page.

    Args:
        made: now, with a time zone.
    """
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    context = {
        "generator": GENERATOR,
        "policy": policy + "base-uri 'none'; form-action 'none'",
        "style": Markup(_part("page.css")),
        "script": Markup(script),
        "bad_tags": BAD_TAGS,
        "footer": f"Made by samplerpool {version('samplerpool')}, {_when(made)}. The page fetches nothing.",
    }
    for part in (_head, _course, _figures, _reading):
        context |= part(found)
    return str(_template().render(context))


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_visible)
    return environment.from_string(_part("page.html"))


def _visible(value: Any) -> Any:
    """A text without what HTML in UTF-8 cannot hold; what is ours already passes."""
    return _UNSEEN.sub(_picture, value) if type(value) is str else value


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


# ---- parts ----------------------------------------------------------------------------------------------------------


def _head(found: Found) -> dict[str, Any]:
    manifest, counts = found.source.manifest, found.counts
    model = str(manifest.model.get("name") or "") if manifest else ""
    errors = sum(kind.count for kind in counts.errors.values())
    tiles = [
        ("rows", f"{counts.rows:,}", "rows"),
        ("answered", f"{counts.answered:,}", "answered"),
        ("errors", f"{errors:,}", "errors"),
        ("empty", f"{counts.empty:,}", "empty answers"),
    ]
    if counts.prompt.rows:
        tiles.append(("prompt-tokens", f"{counts.prompt.total:,}", "prompt tokens"))
    if counts.completion.rows:
        tiles.append(("completion-tokens", f"{counts.completion.total:,}", "completion tokens"))
    if not found.source.no_history:
        took_s = running_s(found.source.sessions)
        tokens = sum(use.completion_tokens for use in worker_uses(found.source.sessions))
        tiles.append(("time", duration(took_s), "running time"))
        tiles.append(("rate", f"{tokens / took_s:,.0f}" if took_s else "-", "completion tokens/s"))
    return {
        "title": f"{found.source.path.name}: report of a batch" + (f" with {model}" if model else ""),
        "lead": _lead(found, manifest),
        "alerts": _alerts(found),
        "tiles": [{"name": name, "value": value, "title": title} for name, value, title in tiles],
        "run": _run(found, manifest),
    }


def _alerts(found: Found) -> list[str]:
    source = found.source
    if not source.unfinished:
        return []
    of = "" if source.total is None else f" of {source.total:,}"
    return [f"Not the whole output: {source.unfinished}, and {found.counts.rows:,}{of} rows are there."]


def _lead(found: Found, manifest: Manifest | None) -> str:
    if manifest is None:
        return "Not written by a samplerpool batch, so nothing is known but the rows."
    params = ", ".join(f"{name} {_value(value)}" for name, value in manifest.params.items())
    begun = f"begun {_when(datetime.fromtimestamp(manifest.created, UTC))}" if manifest.created else ""
    return "; ".join(part for part in (params or "default parameters", f"seed {manifest.run_seed}", begun) if part)


def _run(found: Found, manifest: Manifest | None) -> list[tuple[str, str]]:
    told: list[tuple[str, object]] = [("Output", found.source.path)]
    if manifest is not None:
        model = manifest.model
        told += [
            ("Format", manifest.output_format),
            ("Model", model.get("name")),
            ("Engine", model.get("engine")),
            ("Input", manifest.source),
            ("Converter", manifest.converter),
            ("System prompt", manifest.system),
            ("Prompt template", manifest.prompt_template),
            ("Selection", manifest.select),
            ("Limit", manifest.limit),
            ("Answers per row", manifest.samples if manifest.samples > 1 else None),
            ("Parameters", dict(manifest.params) or "none given"),
            ("Defaults", model.get("defaults") or None),
            ("Seed", manifest.run_seed),
            ("samplerpool", manifest.version),
        ]
        if manifest.created:
            told.append(("Begun", _when(datetime.fromtimestamp(manifest.created, UTC))))
    return [(name, _value(value)) for name, value in told if value is not None]


def _course(found: Found) -> dict[str, Any]:
    sessions = found.source.sessions
    if found.source.no_history:
        return {"no_history": found.source.no_history}
    parts, breaks = spans(sessions), pauses(sessions)
    charts = [
        _rate("completion", "Completion tokens a second", parts, breaks, lambda span: span.completion_tokens),
        _rate("prompt", "Prompt tokens a second", parts, breaks, lambda span: span.prompt_tokens),
        _rate("rows", "Rows a second", parts, breaks, lambda span: span.rows),
    ]
    title = "How full each worker's batch was: the stronger the colour, the fuller."
    name, drawn = "worker-use", worker_chart("worker-use", title, parts, breaks)
    charts.append({"name": name, "heading": "Use of the workers", "title": title, "svg": Markup(drawn)})
    return {"no_history": "", "pauses": _pauses(found, breaks), "over_time": charts, "workers": worker_uses(sessions)}


def _rate(
    name: str, heading: str, parts: Sequence[Span], breaks: Sequence[Pause], rate: Callable[[Span], float]
) -> dict[str, Any]:
    whole_s = parts[-1].end_s
    mean = sum(rate(span) * (span.end_s - span.begin_s) for span in parts) / whole_s
    title = f"{mean:,.1f} on average over {duration(whole_s)}, {max(map(rate, parts)):,.1f} at most; "
    title += "counted as rows finish."
    svg = Markup(rate_chart(name, f"{heading}: {title}", parts, breaks, rate))
    return {"name": name, "heading": heading, "title": title, "svg": svg}


def _pauses(found: Found, breaks: Sequence[Pause]) -> str:
    if not breaks:
        return ""
    lasted = ", ".join(duration(pause.seconds) for pause in breaks[:10]) + (", ..." if len(breaks) > 10 else "")
    first = found.source.sessions[0].number
    missing = f" Of the first {first - 1} nothing is kept." if first > 1 else ""
    return (
        f"The run was begun {len(breaks) + first} times. Dashed lines are pauses, which are left out of the time: "
        f"{lasted}.{missing}"
    )


def _figures(found: Found) -> dict[str, Any]:
    counts = found.counts
    named = [("prompt", "Prompts", counts.prompt), ("completion", "Completions", counts.completion)]
    return {
        "lengths": [_lengths(name, heading, lengths) for name, heading, lengths in named if lengths.rows],
        "finish_reasons": [(name, n, n / counts.rows) for name, n in counts.finish_reasons.most_common()],
        "contents": f"{_count(counts.with_reasoning, 'answer')} with reasoning, {counts.with_tool_calls:,} with tool "
        f"calls, {counts.parse_errors:,} in which something could not be understood and was kept as text.",
        "errors": [
            {"kind": kind, "count": error.count, "examples": [_example(found, *each) for each in error.examples]}
            for kind, error in sorted(counts.errors.items(), key=lambda item: -item[1].count)
        ],
        "empty": f"{_count(counts.empty, 'answer')} without text or tool call"
        + (f", of which {counts.only_reasoning:,} with reasoning alone." if counts.only_reasoning else "."),
        **_duplicates(found),
    }


def _lengths(name: str, heading: str, lengths: Lengths) -> dict[str, Any]:
    quantiles = {0.5: "median", 0.95: "95 %"}
    told = ", ".join(f"{title} {lengths.quantile(share):,}" for share, title in quantiles.items())
    title = f"Tokens of {_count(lengths.rows, 'answer')}: shortest {lengths.shortest:,}, {told}, "
    title += f"longest {lengths.longest:,}, on average {lengths.total / lengths.rows:,.1f}."
    svg = Markup(length_chart(f"{name}-lengths", f"{heading}: {title}", lengths, "tokens"))
    return {"name": f"{name}-lengths", "heading": heading, "title": title, "svg": svg}


def _example(found: Found, place: int, sentence: str) -> dict[str, Any]:
    row = found.rows.get(place)
    name = f"row {place}" if row is None else row.name
    return {"anchor": row and row.anchor, "name": name, "sentence": sentence}


def _duplicates(found: Found) -> dict[str, Any]:
    told = found.duplicates
    text = "No two answers are the same."
    if told.groups:
        text = f"{told.answers:,} answers are also those of other rows: {_count(told.groups, 'different one')}."
    if told.one_in > 1:
        text += f" Told by a sample, one in {told.one_in} of the different answers: the numbers are estimates."
    groups = []
    for count, places in told.largest:
        links = [{"anchor": found.rows[p].anchor, "name": found.rows[p].name} for p in places if p in found.rows]
        groups.append({"count": count, "answer": found.repeated.get(places[0], ""), "links": links})
    return {"repeated": text + " (Empty ones are not counted here.)", "duplicates": groups}


def _reading(found: Found) -> dict[str, Any]:
    rows, counts = list(found.rows.values()), found.counts
    tags = Counter(tag for row in rows for tag in row.tags)
    note = "All rows."
    if len(rows) < counts.rows:
        note = (
            f"{len(rows):,} of {counts.rows:,} rows: errors, empty, longest, shortest and repeated answers and the "
            "like first, the others drawn from all over the output. The figures above are of all rows."
        )
    return {"rows": rows, "rows_note": note, "tags": [(tag, tags[tag]) for tag in TAGS if tags[tag]]}


# ---- texts ----------------------------------------------------------------------------------------------------------


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _value(value: object) -> str:
    return (
        value if isinstance(value, str) else to_json(value).decode() if isinstance(value, dict | list) else str(value)
    )


def _when(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} {time.tzname()}"
