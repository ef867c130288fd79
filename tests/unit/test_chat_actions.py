"""Each command of the chat: what it changes, shows, says, and sends to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samplerpool.chat.actions import ACTIONS
from samplerpool.chat.commands import COMMANDS
from samplerpool.chat.console import LABEL
from samplerpool.chat.turns import text_message
from samplerpool.client.facts import WorkerFacts
from samplerpool.errors import EngineError, WorkerDied
from tests.chat_script import STYLED, Piece, Screen, Script, Session


def contents(message: Any) -> str:
    return str(message["content"][-1]["value"])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_command_of_the_table_does_something() -> None:
    assert [*ACTIONS] == [*COMMANDS]


def test_an_unknown_command_never_reaches_the_model() -> None:
    sampler = Script()
    session = Session(sampler, ["/rety", "/etc/passwd what is that", "/undo twice"])
    assert sampler.prompts == []
    assert len(session.said) == 3
    assert session.code == 0
    assert Session(Script(), ["/rety"], typed=False).code == 1


def test_help_shows_every_command_and_one() -> None:
    shown = Session(Script(), ["/help"]).shown
    assert all(spec.usage in shown for spec in COMMANDS.values())
    assert max(map(len, shown.splitlines())) <= 120
    assert Session(Script(), ["/help /retry"]).shown.startswith("/retry [SEED]\n")
    assert "the nearest one is /compare" in Session(Script(), ["/help conpare"]).said[0]


# ---- how it is answered -------------------------------------------------------------------------------------------


def test_set_shows_what_was_set_and_holds_from_then_on() -> None:
    sampler = Script(["a"], ["b"])
    session = Session(
        sampler,
        ["/set temperature .5", "/set max-tokens 9", '/set stop ["END", "\\n"]', "one", "/unset temperature", "two"],
    )
    assert Session(Script(), ['/set stop "\\n"']).said == ['stop = ["\\n"]']
    assert session.said[:3] == ["temperature = 0.5", "max_new_tokens = 9", 'stop = ["END", "\\n"]']
    assert {"top_k": 3, "temperature": 0.5, "max_new_tokens": 9, "stop": ["END", "\n"]}.items() <= sampler.calls[
        0
    ].items()
    assert "temperature" not in sampler.calls[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temperature hot", "Error: temperature must be a number, not 'hot'."),
        ("/set temperature -1", "Error: temperature must be at least 0 and at most 100, not -1.0."),
        ("/set temprature 1", "Error: Unknown sampling parameter 'temprature'; did you mean 'temperature'?"),
        ("/set n 2", "Error: A chat shows one answer a turn, not 2; leave num_return_sequences out."),
        ("/set temperature", "Error: /set temperature needs a value; /unset temperature takes it back."),
        ("/set seed null", "Error: seed cannot be null; /unset seed takes it back."),
        ("/unset temperature", "Error: temperature is not set here; /params shows what is."),
        ("/unset nothing", "Error: Unknown sampling parameter 'nothing';"),
        ("/retry x", "Error: seed must be an integer, not 'x'."),
        ("/retry", "Error: There is no question yet."),
        ("/undo", "Error: There is no question yet."),
        ("/swap", "Error: There is no answer yet."),
        ("/edit", "Error: There is no question yet."),
        ("/continue", "Error: There is no answer yet."),
        ("/tool 4", "Error: The last answer waits for no tool's result."),
        ("/raw", "Error: There is no question yet."),
        ("/tokens", "Error: There is no answer yet."),
        ("/stats", "Error: There is no answer yet."),
        ("/save", "Error: Nothing was said yet."),
        ("/keep x", "Error: There is no answer yet."),
        ("/prefer x", "Error: There is no answer yet."),
        ("/attach 7", "Error: There is no worker 7 here, only 0, 1."),
        ("/attach elsewhere", "Error: There is no pool 'elsewhere'."),
        ("/compare 0", "Error: /compare needs two workers or adapters"),
        ("/logprobs 99", "Error: logprobs must be at least 0 and at most 20, not 99."),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(line: str, said: str) -> None:
    sampler = Script(["a"])
    session = Session(sampler, [line, "one"])
    assert session.said[0].startswith(said)
    assert len(session.said) == 1
    told = {name: value for name, value in sampler.calls[0].items() if name not in ("on_wait", "tools", "prefill")}
    assert told == {"top_k": 3, "template_options": {}}
    assert session.turns == [("user", "one"), ("assistant", "a")]


def test_params_tell_what_was_set_here_from_defaults() -> None:
    sampler = Script()
    sampler.facts = [WorkerFacts(0, up=True, defaults={"top_k": 9, "top_p": 0.5})]
    shown = Session(sampler, ["/set seed 5", "/params"]).shown.splitlines()
    assert [line.split() for line in shown if line.startswith(("seed", "top_", "max_new"))] == [
        ["max_new_tokens", "128"],
        ["top_k", "3", "set", "here"],
        ["top_p", "0.5", "of", "the", "pool"],
        ["seed", "5", "set", "here"],
    ]


def test_the_system_prompt_can_be_seen_set_and_removed() -> None:
    sampler = Script(["a"], ["b"])
    session = Session(sampler, ["/system", "/system Be kind.\nBe brief.", "one", "/unset system", "two"])
    assert session.said[0] == "System prompt: S"
    assert sampler.prompts[0][0] == text_message("system", "Be kind.\nBe brief.")
    assert [message["role"] for message in sampler.prompts[1]] == ["user", "assistant", "user"]


def test_what_the_chat_template_is_told() -> None:
    sampler = Script(["a"], ["b"], ["c"])
    lines = ["/template", "/template enable_thinking false", "one", "/template style short", "/template", "/retry"]
    bad = ["/template enable_thinking", "/template 1x 2", "/template style a\nb"]
    session = Session(sampler, [*lines, *bad, "/raw", "/unset template", "two"], template_options={"given": 1})
    assert session.said[0] == "Arguments for the chat template: given = 1"
    assert "enable_thinking = false, for the chat template" in session.said
    assert 'Arguments for the chat template: given = 1, enable_thinking = false, style = "short"' in session.said
    assert [call["template_options"] for call in sampler.calls] == [
        {"given": 1, "enable_thinking": False},
        {"given": 1, "enable_thinking": False, "style": "short"},
        {},
    ]
    assert any("/template enable_thinking needs a value on the same line" in line for line in session.said)
    assert any("'1x' is no name of a template's argument" in line for line in session.said)


def test_prefill_begins_one_answer() -> None:
    sampler = Script(["b"], ["d"])
    session = Session(sampler, ['/prefill "a "', "one", "two"])
    assert session.said[0] == 'The next answer begins with "a ".'
    assert [call["prefill"] for call in sampler.calls] == ["a ", ""]
    assert session.turns == [("user", "one"), ("assistant", "a b"), ("user", "two"), ("assistant", "d")]
    assert "Assistant: a b\n" in session.shown


def test_a_prefill_holds_for_the_question_asked_again() -> None:
    sampler = Script(["b"], ["c"], ["d"])
    session = Session(sampler, ["/prefill a", "one", "/retry", "/prefill x", "/retry"])
    assert [call["prefill"] for call in sampler.calls] == ["a", "a", "x"]
    assert session.turns[-1] == ("assistant", "xd")


def test_a_prefill_of_a_failed_turn_is_not_lost() -> None:
    sampler = Script([EngineError("No.")], ["b"])
    session = Session(sampler, ["/prefill a", "one", "/retry"])
    assert session.turns == [("user", "one"), ("assistant", "ab")]


# ---- turns --------------------------------------------------------------------------------------------------------


def test_retry_draws_with_another_seed_or_the_one_given() -> None:
    sampler = Script(["a"], ["b"], ["c"])
    session = Session(sampler, ["/set seed 5", "one", "/retry", "/retry 9"])
    assert [call.get("seed") for call in sampler.calls] == [5, None, 9]
    assert sampler.prompts[0] == sampler.prompts[1] == sampler.prompts[2]
    assert session.turns == [("user", "one"), ("assistant", "c")]


def test_retry_says_when_nothing_changed() -> None:
    session = Session(Script(["a"], ["a"]), ["one", "/retry"])
    assert "(the same answer; with a temperature above 0" in session.said[-1]


@pytest.mark.parametrize("failure", [EngineError("No."), KeyboardInterrupt()])
def test_a_retry_that_fails_leaves_the_answer_as_it_was(failure: BaseException) -> None:
    sampler = Script(["a"], [failure], ["b"])
    session = Session(sampler, ["one", "/retry", "two"])
    assert session.turns == [("user", "one"), ("assistant", "a"), ("user", "two"), ("assistant", "b")]


@pytest.mark.parametrize("answer", [["ha", EngineError("No.")], [KeyboardInterrupt()]])
def test_a_question_that_failed_can_be_asked_again(answer: list[Piece]) -> None:
    sampler = Script(["a"], answer, ["b"])
    session = Session(sampler, ["one", "two", "/retry"])
    assert session.turns[2:] == [("user", "two"), ("assistant", "b")]


def test_what_came_before_the_last_worker_died_is_kept_and_can_go_on() -> None:
    sampler = Script(["ha", WorkerDied("It died.")], ["lf"], [WorkerDied("It died.")], ["b"])
    session = Session(sampler, ["one", "/continue", "two", "/retry"])
    assert session.turns == [("user", "one"), ("assistant", "half"), ("user", "two"), ("assistant", "b")]


def test_undo_takes_back_questions_one_by_one() -> None:
    sampler = Script(["a"], ["b"], [EngineError("No.")], ["c"])
    session = Session(sampler, ["one", "two", "three", "/undo", "/undo", "four"])
    assert session.said[1:] == ["Taken back: three", "Taken back: two"]
    assert session.turns == [("user", "one"), ("assistant", "a"), ("user", "four"), ("assistant", "c")]


def test_swap_brings_the_earlier_answer_back() -> None:
    session = Session(Script(["a"], ["b"]), ["one", "/retry", "/swap"])
    assert session.turns == [("user", "one"), ("assistant", "a")]
    assert session.said == ["The answer is now: a"]


def test_edit_asks_the_changed_question_in_place_of_the_last() -> None:
    seen: list[str] = []

    def edited(text: str) -> str:
        seen.append(text)
        return "two, better"

    sampler = Script(["a"], ["b"], ["c"])
    session = Session(sampler, ["one", "two", "/edit"], edit=edited)
    assert seen == ["two"]
    assert session.turns == [("user", "one"), ("assistant", "a"), ("user", "two, better"), ("assistant", "c")]


@pytest.mark.parametrize("text", ["one", "one\n", ""])
def test_an_edit_that_changes_nothing_asks_nothing(text: str) -> None:
    sampler = Script(["a"])
    session = Session(sampler, ["one", "/edit"], edit=lambda _: text)
    assert len(sampler.prompts) == 1
    assert session.turns == [("user", "one"), ("assistant", "a")]


def test_an_edit_that_fails_can_be_tried_again_or_taken_back() -> None:
    lines = ["one", "/edit"]
    sampler = Script(["a"], [EngineError("No.")], ["c"])
    assert Session(sampler, [*lines, "/retry"], edit=lambda _: "new").turns == [("user", "new"), ("assistant", "c")]
    sampler = Script(["a"], [EngineError("No.")])
    assert Session(sampler, [*lines, "/undo"], edit=lambda _: "new").turns == [("user", "one"), ("assistant", "a")]


def test_edit_needs_someone_who_types() -> None:
    session = Session(Script(["a"]), ["one", "/edit"], typed=False)
    assert session.said == ["Error: /edit needs a terminal."]


def test_a_stopped_answer_goes_on_from_its_own_tokens() -> None:
    sampler = Script(["ha", KeyboardInterrupt()], ["lf"])
    session = Session(sampler, ["/set max_new_tokens 7", "one", "/continue"])
    assert session.turns == [("user", "one"), ("assistant", "half")]
    (answer, more), *_ = sampler.gone_on
    assert more == 7
    assert answer is not None


def test_an_answer_that_was_cut_off_goes_on_again_and_again() -> None:
    sampler = Script(["a"], ["b"], ["c"])
    sampler.reason = "length"
    session = Session(sampler, ["one", "/continue", "/continue"])
    assert session.turns == [("user", "one"), ("assistant", "abc")]
    assert len(sampler.gone_on) == 2
    told = [line.split(" · ")[-2] for line in session.screen.getvalue().splitlines() if " tokens · " in line]
    assert told == ["3 + 1 tokens", "4 + 1 tokens", "5 + 1 tokens"]  # each counts what came in it


def test_an_answer_that_came_to_its_end_does_not_go_on() -> None:
    sampler = Script(["a"])
    session = Session(sampler, ["one", "/continue"])
    assert session.said == ["Error: The last answer had come to its end; /retry asks for another one."]
    assert sampler.gone_on == []


def test_a_continuation_that_fails_leaves_the_answer_as_it_was() -> None:
    sampler = Script(["a", KeyboardInterrupt()], ["x", EngineError("No.")])
    session = Session(sampler, ["one", "/continue"])
    assert session.turns == [("user", "one"), ("assistant", "a")]


def test_where_the_request_is_not_known_the_text_becomes_the_beginning(tmp_path: Path) -> None:
    saved = tmp_path / "c.json"
    saved.write_text(json.dumps([{"role": "user", "content": "one"}, {"role": "assistant", "content": "ha"}]))
    sampler = Script(["lf"])
    session = Session(sampler, [f"/load {saved}", "/continue"])
    assert sampler.calls[0]["prefill"] == "ha"
    assert [message["role"] for message in sampler.prompts[0]] == ["user"]
    assert contents(session.transcript.messages[-1]) == "half"


def test_a_question_that_was_stopped_leaves_the_turn_before_with_its_own_request() -> None:
    sampler = Script(["ha", KeyboardInterrupt()], [KeyboardInterrupt()], ["lf"])
    session = Session(sampler, ["one", "two", "/continue", "/undo", "/continue"])
    assert session.said[2].startswith("Error: The last question has no answer yet; /retry asks it again")
    assert session.turns == [("user", "one"), ("assistant", "half")]
    ((answer, _),) = sampler.gone_on
    assert answer.text == "ha"


def test_a_retry_that_was_stopped_leaves_the_answer_with_its_own_request() -> None:
    sampler = Script(["ha", KeyboardInterrupt()], [KeyboardInterrupt()], ["lf"])
    session = Session(sampler, ["one", "/retry", "/continue"])
    assert session.turns == [("user", "one"), ("assistant", "half")]
    assert [answer.text for answer, _ in sampler.gone_on] == ["ha"]


def test_how_an_answer_ended_that_goes_on_is_what_it_is_then() -> None:
    sampler = Script(["a\ufffd"], ["\u00fc"])
    sampler.reason = "length"
    sampler.retold = "a"
    session = Session(sampler, ["one", "/continue"])
    assert session.turns == [("user", "one"), ("assistant", "a\u00fc")]


def test_prefill_holds_for_a_question_that_failed() -> None:
    sampler = Script([EngineError("No.")], ["b"])
    session = Session(sampler, ["/prefill a", "one", "/prefill So ", "/retry"])
    assert [call["prefill"] for call in sampler.calls] == ["a", "So"]
    assert session.turns == [("user", "one"), ("assistant", "Sob")]


def test_an_answer_goes_on_by_as_much_as_the_pool_gives(tmp_path: Path) -> None:
    sampler = Script(["ha", KeyboardInterrupt()], ["lf"], ["!"])
    sampler.facts = [WorkerFacts(0, up=True, answered=True, defaults={"max_new_tokens": 9})]
    sampler.reason = "length"
    Session(sampler, ["one", "/continue", "/set max_new_tokens 7", "/continue"])
    assert [more for _, more in sampler.gone_on] == [9, 7]


def test_reasoning_goes_on_as_reasoning() -> None:
    sampler = Script(["h", KeyboardInterrupt()], ["m</think>so"])
    sampler.reasoning_open = True
    session = Session(sampler, ["one", "/continue"], palette=STYLED)
    assert session.shown == f"{LABEL}h\n{LABEL}m\n\nso\n"


def test_a_prefill_within_reasoning_that_the_prompt_has_opened_is_shown_as_such() -> None:
    sampler = Script(["m</think>so"])
    sampler.reasoning_open = True
    session = Session(sampler, ["/prefill h", "one"], palette=STYLED)
    assert session.shown == f"{LABEL}hm\n\nso\n"
    assert "\x1b[2mh" in session.screen.getvalue()


def test_a_prefill_is_shown_also_where_nothing_comes_behind_it() -> None:
    assert Session(Script([]), ["/prefill h", "one"]).shown == f"{LABEL}h\n"


def test_a_failed_question_is_asked_again_with_the_seed_that_was_set() -> None:
    sampler = Script([EngineError("No.")], ["a"], ["b"])
    Session(sampler, ["/set seed 5", "one", "/retry", "/retry"])
    assert [call.get("seed") for call in sampler.calls] == [5, 5, None]


def test_a_stopped_comparison_is_parsed_as_well() -> None:
    class Stopped(Screen):
        def write(self, text: str) -> int:
            if "ho" in text:
                raise KeyboardInterrupt
            return super().write(text)

    sampler = Script(["a"], ["<think>hm</think>", "ho\n"], ["<think>hm</think>", "ho\n"])
    session = Session(sampler, ["one", "/compare 0 1"], screen=Stopped(), chosen=0)
    assert [block["type"] for block in session.transcript.last.answer["content"]] == ["reasoning", "text"]


# ---- files --------------------------------------------------------------------------------------------------------


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "with space.json"
    session = Session(Script(["a"]), ["one", f"/save {path}"])
    assert session.said == [f"Saved to {path} (3 messages)."]
    sample = json.loads(path.read_text())
    assert sample == {"messages": session.transcript.messages}
    sampler = Script(["b"])
    again = Session(sampler, [f'/load "{path}"', "two", "/save"])
    assert again.transcript.system == "S"
    assert again.turns == [("user", "one"), ("assistant", "a"), ("user", "two"), ("assistant", "b")]
    assert len(json.loads(path.read_text())["messages"]) == 5
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_of_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    session = Session(Script(["a"]), ["one", f"/save {path}", f"/export {path}"])
    assert path.read_text() == "precious"
    assert session.said == [f"Error: {path} is there already and was left as it is; choose another name."] * 2
    assert [each.name for each in tmp_path.iterdir()] == ["precious"]


def test_a_question_without_an_answer_is_saved_and_asked_after_loading(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    Session(Script(["a"], [EngineError("No.")]), ["one", "two", f"/save {path}"])
    session = Session(Script(["b"]), [f"/load {path}", "/retry"])
    assert "its last question has no answer, /retry asks it" in session.said[0]
    assert session.turns[2:] == [("user", "two"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("3", "is no conversation"),
        ('{"messages": [{"role": "king", "content": "x"}]}', "messages[0]: the role must be one of"),
        ("[" * 100_000, "is not JSON"),
        ("\0", "is no text: it holds zero bytes"),
    ],
)
def test_what_is_no_conversation_is_not_loaded(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    session = Session(Script(["a"]), ["one", f"/load {path}", f"/load {tmp_path}", f"/load {tmp_path}/none"])
    assert session.turns == [("user", "one"), ("assistant", "a")]
    assert said in session.said[0]
    assert session.said[1:] == [
        f"Error: {tmp_path} is not a plain file.",
        f"Error: {tmp_path}/none cannot be read: No such file or directory.",
    ]


def test_export_writes_markdown(tmp_path: Path) -> None:
    path = tmp_path / "c.md"
    sampler = Script(["x"])
    sampler.parsed = {
        "role": "assistant",
        "content": [
            {"type": "reasoning", "value": "hm\nso"},
            {"type": "text", "value": "Well:"},
            {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        ],
    }
    Session(sampler, ["one", f"/export {path}"])
    assert path.read_text() == (
        "## System\n\nS\n\n## User\n\none\n\n## Assistant\n\n> hm\n> so\n\nWell:\n\n"
        '```json\n{\n  "name": "add",\n  "arguments": {\n    "a": 1\n  }\n}\n```\n'
    )


def test_files_go_in_front_of_the_next_message_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.md"
    one.write_text("\ufeffprint(1)\n", encoding="utf-8")
    two.write_text("```\nx\n```\n")
    sampler = Script(["a"], ["b"])
    Session(sampler, [f"/file {one}", f"/file {two}", "what is that", "and now"])
    assert contents(sampler.prompts[0][1]) == (
        "one.py:\n```\nprint(1)\n```\n\ntwo.md:\n````\n```\nx\n```\n````\n\nwhat is that"
    )
    assert contents(sampler.prompts[1][3]) == "and now"


def test_a_file_can_be_dropped_and_must_be_text(tmp_path: Path) -> None:
    path, empty = tmp_path / "f", tmp_path / "empty"
    path.write_text("x")
    empty.touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    sampler = Script(["a"])
    session = Session(
        sampler, [f"/file {path}", "/unset files", f"/file {empty}", f"/file {tmp_path / 'binary'}", "one"]
    )
    assert session.said[2:] == [
        f"Error: {empty} is empty.",
        f"Error: {tmp_path / 'binary'} is no text in UTF-8 (byte 0).",
    ]
    assert contents(sampler.prompts[0][-1]) == "one"


def test_an_image_is_read_at_once_and_goes_with_the_question(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    path.write_bytes(b"\x89PNG")
    sampler = Script(["a"], ["b"])
    lines = [f"/image {path}", "what is that", "/edit"]
    (tmp_path / "x.txt").write_text("x")
    wrong = [f"/image {tmp_path}/none.png", f"/image {tmp_path}/x.txt"]
    session = Session(sampler, [*wrong, *lines], edit=lambda _: "what is it")
    assert session.said[0].startswith("Error: The image ")
    assert session.said[1].startswith(f"Error: {tmp_path}/x.txt is of type text/plain, not an image;")
    for prompt, text in zip(sampler.prompts, ["what is that", "what is it"], strict=True):
        assert prompt[1]["content"] == [
            {"type": "image_url", "value": "data:image/png;base64,iVBORw=="},
            {"type": "text", "value": text},
        ]


def test_keep_appends_conversations_as_samples(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text('{"messages": []}')  # somebody's row without its end
    session = Session(Script(["a"], [EngineError("No.")]), ["one", "two", f"/keep {path}", f"/keep {path}"])
    kept = {"messages": [text_message("system", "S"), text_message("user", "one"), text_message("assistant", "a")]}
    assert rows(path) == [{"messages": []}, kept, kept]
    assert session.code == 0


def test_prefer_appends_the_answer_and_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "dpo.jsonl"
    Session(Script(["a"], ["b"]), ["one", "/retry", f"/prefer {path}", "/swap", f"/prefer {path}"])
    before = [text_message("system", "S"), text_message("user", "one")]
    a, b = text_message("assistant", "a"), text_message("assistant", "b")
    assert rows(path) == [
        {"chosen_messages": [*before, b], "rejected_messages": [*before, a]},
        {"chosen_messages": [*before, a], "rejected_messages": [*before, b]},
    ]


def test_prefer_needs_two_answers_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "dpo.jsonl"
    session = Session(Script(["a"], ["a"]), ["one", f"/prefer {path}", "/retry", f"/prefer {path}"])
    assert "There is no other answer to prefer this one to" in session.said[0]
    assert "Both answers are the same" in session.said[-1]
    assert not path.exists()


# ---- what is kept without a word ----------------------------------------------------------------------------------


def test_every_conversation_is_kept_and_the_last_one_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    session = Session(Script(["a"], ["b"]), ["one", "clear", "two"], conversations=folder)
    assert session.said[-1] == "This conversation is kept; /load in the next chat goes on with it."
    assert len([*folder.iterdir()]) == 2
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    again = Session(Script(["c"]), ["/load", "three"], conversations=folder)
    assert again.turns == [("user", "two"), ("assistant", "b"), ("user", "three"), ("assistant", "c")]
    assert len([*folder.iterdir()]) == 3


def test_the_question_is_kept_before_its_answer_comes(tmp_path: Path) -> None:
    class Looking(Script):
        def _stream(self, call: Any, options: Any) -> Any:
            (path,) = tmp_path.iterdir()
            self.seen = json.loads(path.read_text())["messages"]
            return super()._stream(call, options)

    sampler = Looking(["a"])
    Session(sampler, ["one"], conversations=tmp_path)
    assert sampler.seen == [text_message("system", "S"), text_message("user", "one")]


def test_where_nothing_was_said_nothing_is_kept(tmp_path: Path) -> None:
    session = Session(Script(), ["/help", "clear"], conversations=tmp_path)
    assert session.said == ["The conversation starts anew."]
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_costs_one_notice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    session = Session(Script(["a"], ["b"]), ["one", "two"], conversations=tmp_path / "file")
    assert len(session.said) == 1
    assert "This conversation is not kept" in session.said[0]
    assert len(session.turns) == 4


# ---- tools --------------------------------------------------------------------------------------------------------

CALLS: Any = {
    "role": "assistant",
    "content": [
        {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"type": "tool_call", "value": '{"name": "sub", "arguments": {"a": 1}}'},
    ],
}


def test_tools_are_offered_and_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps({"tools": [{"type": "function", "function": {"name": "add"}}, {"name": "sub"}]}))
    sampler = Script(["a"], ["b"])
    session = Session(sampler, ["/tools", f"/tools {path}", "one", "/unset tools", "two"])
    assert session.said[1] == "Tools on offer: add, sub. /unset tools takes them back."
    assert json.loads(sampler.calls[0]["tools"])[1] == {"name": "sub"}
    assert sampler.calls[1]["tools"] is None


@pytest.mark.parametrize("text", ["[]", "{}", "[3]", '[{"name": 3}]', "x"])
def test_what_says_no_tools_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    sampler = Script(["a"])
    session = Session(sampler, [f"/tools {path}", "one"])
    assert session.said[0].startswith(f"Error: {path} ")
    assert sampler.calls[0]["tools"] is None


def test_results_of_all_tools_go_to_the_model_in_the_order_of_the_calls() -> None:
    sampler = Script(["x"], ["y"])
    sampler.parsed = CALLS
    session = Session(sampler, ["one", "/tool sub 7", "/tool 8"])
    assert session.said == ["Still to be answered: add."]
    assert sampler.prompts[1][3:] == [text_message("tool", "8"), text_message("tool", "7")]


def test_a_message_takes_results_along_that_were_given() -> None:
    sampler = Script(["x"], [EngineError("No.")], ["z"])
    sampler.parsed = CALLS
    Session(sampler, ["one", "/tool add a result of words", "never mind", "/retry"])
    for prompt in sampler.prompts[1:]:
        assert prompt[3:] == [text_message("tool", "a result of words"), text_message("user", "never mind")]


# ---- looking into it ----------------------------------------------------------------------------------------------


def test_raw_shows_the_prompt_that_was_used_or_would_be(tmp_path: Path) -> None:
    shown = Session(Script(["a"]), ["one", "/raw"]).shown
    assert shown.endswith(
        '\x01\x02\x03\n3 tokens:\n"\\u0001" 1  "\\u0002" 2  "\\u0003" 3\n'.translate({1: 0x2401, 2: 0x2402, 3: 0x2403})
    )
    shown = Session(Script([EngineError("No.")]), ["/prefill p", "one", "/raw"]).shown
    assert "<system>S\n<user>one\np\n21 tokens:\n" in shown


def test_tokens_and_the_context() -> None:
    shown = Session(Script(["a\n"]), ["one", "/tokens"]).shown
    assert shown.endswith('"a" 97  "\\n" 10\nprompt 3 tokens, answer 2; context 5 of 100 (5 %)\n')
    session = Session(Script(["a"], ["b"]), ["one", "/retry", "/swap", "/tokens"])
    assert "are not known" in session.said[-1]


def test_probabilities_are_shown_from_then_on_in_colours_or_with_alternatives() -> None:
    sampler = Script(["ab"], ["cd"], ["ef"], ["gh"])
    session = Session(sampler, ["one", "/logprobs", "two", "/logprobs 1", "three", "/logprobs off", "four"])
    assert [call.get("logprobs") for call in sampler.calls] == [None, 0, 1, None]
    assert "The last answer came without probabilities; /retry 77 asks" in session.said[1]
    assert "cd\nprobability: 0.0 0.1" in session.shown
    assert ' 90.5%  "e"    5.0% "z"' in session.shown
    coloured = session.screen.getvalue()
    assert "gh\nprobability" not in session.shown
    assert coloured.count("probability: ") == 2  # at once for two when /logprobs 1 came, and after two itself


def test_how_answers_are_shown() -> None:
    sampler = Script(["<think>hm</think>a"], ["<think>ho</think>*b*"])
    sampler.facts = [WorkerFacts(0, up=True, answered=True, answer_tags={"think": ("<think>", "</think>")})]
    lines = [
        "/reasoning off",
        "one",
        "/reasoning",
        "/reasoning full",
        "/markdown",
        "two",
        "/reasoning x",
        "/markdown x",
    ]
    session = Session(sampler, lines, palette=STYLED)
    assert session.shown.endswith("a\nhm\nAssistant: ho\n\nb\n")
    assert session.shown.count("hm") == 1
    assert session.said == [
        "Reasoning: off",
        "Reasoning: full",
        "Markdown is drawn.",
        "Error: /reasoning takes full, folded or off, not 'x'.",
        "Error: /markdown takes on or off, not 'x'.",
    ]


def test_stats_and_workers() -> None:
    shown = Session(Script(["ab"], ["c"]), ["one", "two", "/stats", "/attach 1", "/workers"]).shown
    assert "answers             2\n" in shown
    assert "tokens generated    3\n" in shown
    assert "its seed            77 (/retry 77 draws the same)\n" in shown
    assert "  0  ready  model (made up), context 100; 0 running, 0 queued, 0 tokens/s\n* 1  ready" in shown


# ---- elsewhere ----------------------------------------------------------------------------------------------------


def test_attach_changes_who_answers_and_keeps_the_conversation() -> None:
    here, there = Script(["a"], ["b"], name="here"), Script(["c"], name="there")
    lines = ["/attach 1", "one", "/attach", "two", "/attach other", "three"]
    session = Session(here, lines, pools={"other": there})
    assert [call.get("worker") for call in here.calls] == [1, None]
    assert len(there.prompts[0]) == 6
    assert session.said[-1] == "Attached to other: there."
    assert (there.ended, here.ended) == (True, False)


def test_an_answer_of_another_pool_goes_on_by_its_text() -> None:
    here, there = Script(["ha", KeyboardInterrupt()]), Script(["lf"])
    session = Session(here, ["one", "/attach other", "/continue"], pools={"other": there})
    assert there.calls[0]["prefill"] == "ha"
    assert session.turns == [("user", "one"), ("assistant", "half")]


def test_compare_asks_both_with_one_seed_and_keeps_the_chosen(tmp_path: Path) -> None:
    path = tmp_path / "dpo.jsonl"
    sampler = Script(["first"], ["same"], ["same"])
    session = Session(sampler, ["one", "/compare 0 tuned", f"/prefer {path}"], chosen=1)
    zero, tuned = sorted(sampler.calls[1:], key=lambda call: "adapter" in call)
    assert zero["seed"] == tuned["seed"] is not None
    assert (zero["worker"], tuned["adapter"]) == (0, "tuned")
    assert sampler.prompts[0] == sampler.prompts[1] == sampler.prompts[2]
    assert "Both answers are the same." in session.said
    assert session.turns == [("user", "one"), ("assistant", "same")]
    assert not path.exists()


def test_compare_puts_answers_side_by_side_whichever_comes_first(tmp_path: Path) -> None:
    class Named(Script):
        def generate(self, messages: Any, tools: Any = None, **options: Any) -> Any:
            self.answers = [[options.get("adapter", "first") + " says"]]
            return super().generate(messages, tools, **options)

    path = tmp_path / "dpo.jsonl"
    session = Session(Named(), ["one", "/compare x y", f"/prefer {path}"], chosen=1)
    assert "x says" + " " * 32 + " │ y says\n" in session.shown
    assert session.said[-2:] == [
        "The answer of y stays; /prefer FILE appends the pair.",
        f"Appended to {path}: the last answer as chosen, the earlier one as rejected; /swap swaps them.",
    ]
    (row,) = rows(path)
    assert (contents(row["chosen_messages"][-1]), contents(row["rejected_messages"][-1])) == ("y says", "x says")


@pytest.mark.parametrize("failure", [EngineError("No."), None])
def test_a_comparison_without_a_choice_changes_nothing(failure: BaseException | None) -> None:
    sampler = Script(["a"], ["b"], [failure] if failure else ["c"])
    session = Session(sampler, ["one", "/compare 0 1"], chosen=None if failure is None else 0)
    assert session.turns == [("user", "one"), ("assistant", "a")]
    assert session.said[-1] == "The conversation stays as it was."
