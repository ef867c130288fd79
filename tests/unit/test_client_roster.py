"""Whom a client is connected to, by list equality: what the pool says in, whom to join and whom to retire out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samplerpool.client.roster import SILENT_FOR_S, VERDICT_TIMEOUT_S, Join, Retire, Roster
from samplerpool.wire.endpoint import ConnectionFile, Ending, ProcessId, WorkerEntry

NOBODY = ProcessId(0, 0)


def entry(index: int, incarnation: str, state: str = "ready", detail: str = "") -> WorkerEntry:
    return WorkerEntry(index, f"ipc:///{incarnation}", incarnation, "cpu", state, NOBODY, detail=detail)


def pool(*workers: WorkerEntry, endings: tuple[Ending, ...] = (), state: str = "running") -> ConnectionFile:
    return ConnectionFile("p", "m", "scripted", state, NOBODY, "ipc:///s", workers, endings)


def standing(roster: Roster, index: int = 0) -> tuple[str, bool, bool]:
    now = roster.standings()[index]
    return now.incarnation, now.open, now.coming


def test_ready_workers_are_joined_once_and_others_when_they_are_ready() -> None:
    roster = Roster("p")
    first, second = entry(0, "a"), entry(1, "b", "loading")
    assert roster.update(pool(first, second), 0) == [Join(first)]
    assert standing(roster, 1) == ("", False, True)
    assert roster.update(pool(first, second), 1) == []
    second = replace(second, state="ready")
    assert roster.update(pool(first, second), 2) == [Join(second)]
    assert standing(roster, 1) == ("b", True, False)


def test_a_death_waits_for_the_pool_s_word_and_the_successor_is_joined() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    assert roster.ended(0, "a", 1) == []
    assert roster.ended(0, "a", 1) == []  # said twice
    assert (roster.awaiting, standing(roster)) == (True, ("a", False, True))
    assert roster.update(pool(entry(0, "a")), 1) == []  # not written yet
    ending = Ending(0, "a", False, "was killed by SIGKILL")
    assert roster.update(pool(entry(0, "a", "restarting"), endings=(ending,)), 1.1) == [Retire(0, "a", ending)]
    assert roster.awaiting is False
    assert "was killed by SIGKILL" in roster.standings()[0].reason
    assert roster.update(pool(entry(0, "b", "starting"), endings=(ending,)), 1.2) == []
    assert standing(roster) == ("", False, True)
    assert roster.update(pool(entry(0, "b"), endings=(ending,)), 1.3) == [Join(entry(0, "b"))]
    assert standing(roster) == ("b", True, False)


def test_the_pool_s_word_is_not_awaited_for_ever_and_the_dead_are_not_joined_again() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    roster.ended(0, "a", 1)
    assert roster.update(pool(entry(0, "a")), 1 + VERDICT_TIMEOUT_S) == [Retire(0, "a", None)]
    assert roster.update(pool(entry(0, "a")), 100) == []
    assert standing(roster) == ("", False, True)


@pytest.mark.parametrize("now", [entry(0, "a", "restarting"), entry(0, "a", "failed"), entry(0, "b", "loading")])
def test_without_a_sign_from_the_system_the_pool_s_word_is_enough(now: WorkerEntry) -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    assert roster.update(pool(now), 1) == [Retire(0, "a", None)]


def test_a_missed_process_in_between_is_retired_and_its_successor_joined_at_once() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    ending = Ending(0, "a", True, "was asked to")
    assert roster.update(pool(entry(0, "c"), endings=(ending,)), 9) == [Retire(0, "a", ending), Join(entry(0, "c"))]


def test_a_draining_worker_takes_nothing_and_keeps_its_calls() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    assert roster.update(pool(entry(0, "a", "stopping")), 1) == []
    assert standing(roster) == ("a", False, True)
    assert roster.update(pool(entry(0, "a", "stopping"), state="stopping"), 1) == []
    assert standing(roster) == ("a", False, False)
    ending = Ending(0, "a", True, "exited with code 0")
    assert roster.update(pool(entry(0, "a", "stopped"), state="stopping", endings=(ending,)), 2) == [
        Retire(0, "a", ending)
    ]
    assert roster.standings()[0].reason == "Worker 0 was stopped."


def test_workers_appear_and_leave() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    assert roster.update(pool(entry(0, "a"), entry(1, "b")), 1) == [Join(entry(1, "b"))]
    ending = Ending(1, "b", True, "was asked to")
    assert roster.update(pool(entry(0, "a"), endings=(ending,)), 2) == [Retire(1, "b", ending)]
    assert list(roster.standings()) == [0]


def test_one_that_was_picked_stays_alone() -> None:
    roster = Roster("p", only=1)
    assert roster.update(pool(entry(0, "a"), entry(1, "b")), 0) == [Join(entry(1, "b"))]
    assert roster.update(pool(entry(0, "a"), entry(1, "b", "restarting")), 0) == [Retire(1, "b", None)]
    assert list(roster.standings()) == [1]


def test_a_silent_worker_is_tried_again_after_a_while() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    assert roster.silent(0, "a", 5) == [Retire(0, "a", None)]
    assert roster.update(pool(entry(0, "a")), 6) == []
    assert roster.standings()[0].reason == "Worker 0 has not answered for a long time."
    assert roster.update(pool(entry(0, "a")), 5 + SILENT_FOR_S) == [Join(entry(0, "a"))]


def test_a_failed_worker_does_not_come_back_but_when_it_is_replaced() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a")), 0)
    roster.update(pool(entry(0, "a", "failed", "it exited with code 1, and that was its last start.\nlog")), 1)
    assert standing(roster) == ("", False, False)
    reason = roster.standings()[0].reason
    assert reason == "Worker 0 has failed: it exited with code 1, and that was its last start."
    assert roster.update(pool(entry(0, "b")), 2) == [Join(entry(0, "b"))]


def test_with_the_pool_gone_nobody_comes_back_and_deaths_need_no_word() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a"), entry(1, "b")), 0)
    roster.ended(0, "a", 1)
    assert roster.update(None, 1) == [Retire(0, "a", None)]
    assert standing(roster) == ("", False, False)
    assert standing(roster, 1) == ("b", True, False)  # it may still finish what it has
    roster.ended(1, "b", 2)
    assert roster.update(None, 2) == [Retire(1, "b", None)]


def test_where_nobody_tells_a_death_is_final_at_once() -> None:
    roster = Roster(followed=False)
    roster.update(pool(entry(0, "a")), 0)
    assert roster.ended(0, "a", 1) == [Retire(0, "a", None)]
    assert standing(roster) == ("", False, False)


def test_deaths_of_others_are_none_of_its_business() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "b")), 0)
    assert roster.ended(0, "a", 1) == []
    assert roster.silent(7, "x", 1) == []
    assert standing(roster) == ("b", True, False)


def test_who_is_barred_leaves_all_workers_for_good() -> None:
    roster = Roster("p")
    roster.update(pool(entry(0, "a"), entry(1, "b", "loading")), 0)
    assert roster.bar("It does not know us.") == [Retire(0, "a", None)]
    assert [standing(roster, index) for index in (0, 1)] == [("", False, False)] * 2
    assert {each.reason for each in roster.standings().values()} == {"It does not know us."}
    assert roster.bar("It does not know us.") == []
