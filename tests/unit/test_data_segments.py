"""The parts of an answer as it streams, against the worker's reading of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from samplerpool.data.segments import Segment, Segmenter, message_of
from samplerpool.rendering.parsing import DEFAULT_TAGS, AnswerTags, _Reader, parse_message

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call> </think>"}}\n</tool_call>'
PIECES = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    CALL,
    '{"name": "f", "arguments": {}}',
    '"',
    "<",
    "<th",
    "<tool_",
    " ",
    "\n\n",
    "a",
    "zwölf 😀",
)


def segments(
    text: str,
    cuts: Sequence[int] = (),
    *,
    tags: Mapping[str, Sequence[str]] | None = None,
    reasoning_open: bool = False,
) -> list[Segment]:
    """The segments of a text that comes in pieces, cut at these positions; neighbours of one kind are joined."""
    segmenter = Segmenter(tags, reasoning_open=reasoning_open)
    bounds = [0, *sorted(cuts), len(text)]
    found = [each for a, b in pairwise(bounds) for each in segmenter.feed(text[a:b])]
    joined: list[Segment] = []
    for segment in (*found, *segmenter.end()):
        if joined and joined[-1].kind == segment.kind != "tool_call":
            joined[-1] = Segment(segment.kind, joined[-1].text + segment.text)
        else:
            joined.append(segment)
    return joined


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=10), st.lists(st.integers(0, 200)), st.booleans())
@example(["<think>", "a", "</think>", CALL], list(range(100)), True)
@example(["a", " ", "<tool_call>", "<think>", "a"], [], False)
@example(["\n\n", "<think>", " ", "a", " "], [3], True)
@example(["<tool_call>", '{"name": "f", "arguments": {}}', " "], [], False)
def test_what_streams_is_read_as_the_whole_is(pieces: list[str], cuts: list[int], reasoning_open: bool) -> None:
    text = "".join(pieces)
    message = parse_message(text, reasoning_is_open=reasoning_open)
    if not reasoning_open or text.lstrip().startswith("<think>"):
        # Without an opening tag, only the whole answer tells that its beginning was reasoning.
        assume(_Reader(text, DEFAULT_TAGS)._reasoning_opened_by_prompt() == ("", 0))
    expected = [Segment(block["type"], block["value"]) for block in message["content"] if block["value"]]
    expected = _joined_reasoning(expected)
    assert segments(text, [cut for cut in cuts if cut < len(text)], reasoning_open=reasoning_open) == expected


def _joined_reasoning(blocks: list[Segment]) -> list[Segment]:
    """Two stretches of reasoning with nothing between them look like one."""
    joined: list[Segment] = []
    for block in blocks:
        if joined and joined[-1].kind == block.kind != "tool_call":
            joined[-1] = Segment(block.kind, joined[-1].text + block.text)
        else:
            joined.append(block)
    return joined


def test_text_is_given_as_soon_as_it_cannot_be_part_of_a_tag() -> None:
    segmenter = Segmenter()
    assert segmenter.feed("1 <") == [Segment("text", "1")]
    assert segmenter.feed(" 2 ") == [Segment("text", " < 2")]
    assert segmenter.feed("<thin") == []
    assert segmenter.feed("g> ") == [Segment("text", " <thing>")]
    assert segmenter.end() == [Segment("text", " ")]


def test_reasoning_streams_and_what_is_open_can_be_asked() -> None:
    segmenter = Segmenter(reasoning_open=True)
    assert segmenter.inside == "reasoning"
    assert segmenter.feed("\nhm </th") == [Segment("reasoning", "hm")]
    assert segmenter.feed("ink>") == []
    assert segmenter.inside == "text"
    assert segmenter.feed("\n\nyes<tool_call>{") == [Segment("text", "yes")]
    assert segmenter.inside == "tool_call"


@pytest.mark.parametrize("cut", range(40))
def test_a_model_may_have_tags_of_its_own(cut: int) -> None:
    tags = AnswerTags(think=("<thinking>", "</thinking>"))
    text = "<thinking>a <think> b</thinking> c"
    found = segments(text, [min(cut, len(text))], tags={"think": tags.think, "tool_call": tags.tool_call})
    assert found == [Segment("reasoning", "a <think> b"), Segment("text", "c")]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(PIECES), max_size=8), st.booleans())
def test_a_stopped_answer_is_the_message_of_its_segments(pieces: list[str], reasoning_open: bool) -> None:
    text = "".join(pieces)
    message = message_of(text, None, reasoning_open=reasoning_open)
    found = [Segment(block["type"], block["value"]) for block in message["content"]]  # type: ignore[arg-type]
    assert found == (segments(text, reasoning_open=reasoning_open) or [Segment("text", "")])


@pytest.mark.parametrize(
    ("begun", "reasoning_open", "kinds"),
    [
        ("<think>a", True, ["reasoning", "text"]),
        ("a", True, ["reasoning", "text"]),
        ("a</think>b<think>", True, ["reasoning", "text", "reasoning", "text"]),
        ("a", False, ["text"]),
    ],
)
def test_a_beginning_tells_whether_the_prompt_had_opened_the_reasoning(
    begun: str, reasoning_open: bool, kinds: list[str]
) -> None:
    message = message_of(f"{begun}b</think>c", None, begun=begun, reasoning_open=reasoning_open)
    assert [block["type"] for block in message["content"]] == kinds
