"""Who is let in, how many at a time, which models there are, how the pool is, and what errors come to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samplerpool.client.facts import WorkerFacts
from samplerpool.errors import (
    AccessDenied,
    EngineError,
    InvalidParameter,
    PromptTooLong,
    ProtocolError,
    QueueFull,
    RenderError,
    SamplerPoolError,
    UnsupportedParameter,
    UsageError,
    WorkerDied,
    WorkerDraining,
)
from samplerpool.gateway.admission import Keys, Places, check_exposure, check_host, is_loopback, read_keys
from samplerpool.gateway.catalog import Catalog
from samplerpool.gateway.health import STALLED_S, Progress
from samplerpool.gateway.problems import Problem, problem_of

KEYS = Keys({"secret-of-alice": "alice", "secret-of-bob": "bob"})
WORKER = WorkerFacts(0, up=True, answered=True, running=1, steps=5, incarnation="a")


def test_the_file_of_keys() -> None:
    text = "# keys\nalice secret-of-alice  # hers\n\nsecret-alone\n"
    assert read_keys(text, "F") == {"secret-of-alice": "alice", "secret-alone": "line-4"}
    for text, said in (("a b c-is-too-much", "line 1"), ("x\n", "line 1: a key has 8"), ("# none", "no key in F")):
        with pytest.raises(UsageError, match=said):
            read_keys(text, "F")


def test_keys_let_in_those_who_have_one() -> None:
    assert KEYS.name("Bearer secret-of-bob") == "bob"
    assert KEYS.name("bearer  secret-of-alice ") == "alice"
    for header in (None, "", "secret-of-bob", "Basic secret-of-bob", "Bearer", "Bearer secret-of-bo", "Bearer \udcff"):
        problem = KEYS.name(header)
        assert isinstance(problem, Problem)
        assert (problem.status, problem.code) == (401, "invalid_api_key")
        assert "secret" not in problem.message
    assert Keys({}).name(None) == ""
    assert (bool(KEYS), bool(Keys({}))) == (True, False)


def test_off_the_loopback_keys_are_needed() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(host)
        check_exposure(host, Keys({}), anyone=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "gpu.example.org", ""):
        assert not is_loopback(host)
        check_exposure(host, KEYS, anyone=False)
        check_exposure(host, Keys({}), anyone=True)
        with pytest.raises(UsageError, match="--anyone"):
            check_exposure(host, Keys({}), anyone=False)


def test_a_web_page_does_not_come_in_under_its_own_name() -> None:
    for host in (None, "", "localhost:8000", "LocalHost", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        assert check_host(host) is None
    for host in ("evil.example:8000", "localhost.evil.example", "10.0.0.1", "[::2]:80"):
        assert check_host(host) is not None


def test_places_are_taken_and_given_back() -> None:
    places = Places(3)
    assert places.enter(2) is None
    problem = places.enter(2)
    assert problem == Problem(
        429,
        "All 3 places for answers are taken (2 in progress, 2 more asked for). Try again later.",
        "rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )
    assert problem.kind == "rate_limit_error"
    assert (places.enter(1), places.taken) == (None, 3)
    places.leave(2, 0.1)
    assert places.taken == 1
    usual_s = places.retry_after_s
    places.leave(1)
    assert (places.taken, places.retry_after_s) == (0, usual_s)
    places.closed = True
    closing = places.enter(1)
    assert closing is not None
    assert (closing.status, "Retry-After" in closing.headers) == (503, True)


def test_when_to_try_again_follows_from_how_long_answers_take() -> None:
    places = Places(4)
    for _ in range(60):
        assert places.enter(1) is None
        places.leave(1, 40.0)
    assert places.enter(4) is None
    assert places.retry_after_s == 10
    for _ in range(60):
        places.leave(0, 1e6)
    assert places.retry_after_s == 30


def test_models_are_the_pool_s_and_its_adapters() -> None:
    catalog = Catalog("base-model", 7, ("law", "code"), 512)
    assert [entry["id"] for entry in catalog.listed()["data"]] == ["base-model", "law", "code"]
    assert catalog.entry("law") == {
        "id": "law",
        "object": "model",
        "created": 7,
        "owned_by": "samplerpool",
        "max_model_len": 512,
        "parent": "base-model",
    }
    assert catalog.adapter("law", None) == "law"
    assert catalog.adapter("law", "law") == "law"
    assert catalog.adapter("base-model", None) == "base"
    assert catalog.adapter("base-model", "code") == "code"
    assert catalog.adapter(None, None) is None
    assert Catalog("m", 7).adapter("m", None) is None
    for problem in (catalog.adapter("gpt-9", None), catalog.entry("gpt-9")):
        assert isinstance(problem, Problem)
        assert (problem.status, problem.code, problem.param) == (404, "model_not_found", "model")
    both = catalog.adapter("law", "code")
    assert isinstance(both, Problem)
    assert (both.status, both.param) == (400, "adapter")


def test_health_means_progress() -> None:
    progress, late = Progress(), STALLED_S + 1
    assert progress.trouble([WORKER], 0.0) == ""
    assert "has done nothing for 31 s" in progress.trouble([WORKER], late)
    assert progress.trouble([replace(WORKER, steps=6)], late) == ""
    assert progress.trouble([replace(WORKER, steps=6)], late + STALLED_S) == ""
    assert progress.trouble([replace(WORKER, steps=6)], late + late) != ""
    assert progress.trouble([replace(WORKER, steps=6, incarnation="b")], late + late) == ""
    idle = replace(WORKER, running=0, steps=6, incarnation="b")
    assert progress.trouble([idle], 1e6) == ""
    assert progress.trouble([replace(idle, queued=1)], 1e6 + 1) == ""


def test_one_worker_that_gets_on_is_enough() -> None:
    down = WorkerFacts(1, down_reason="It died.")
    silent = replace(WORKER, index=2, answered=False)
    assert Progress().trouble([down, silent, WORKER], 0.0) == ""
    trouble = Progress().trouble([down, silent, WorkerFacts(3, coming=True)], 0.0)
    assert trouble == "No worker of 3 workers gets on: It died. worker 2 does not answer. worker 3 is coming."
    assert Progress().trouble([], 0.0) == "The pool has no workers."


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (QueueFull("Full."), 429, "rate_limit_exceeded", None),
        (PromptTooLong("Long."), 400, "context_length_exceeded", "messages"),
        (UnsupportedParameter("No.", parameter="logit_bias"), 400, "unsupported_parameter", "logit_bias"),
        (RenderError("No.", param="messages"), 400, "invalid_value", "messages"),
        (InvalidParameter("No."), 400, "invalid_value", None),
        (EngineError("Broken."), 500, "engine_error", None),
        (WorkerDied("Dead."), 503, "unavailable", None),
        (WorkerDraining("Leaving."), 503, "unavailable", None),
        (AccessDenied("Revoked."), 503, "unavailable", None),
        (ProtocolError("Odd."), 500, "internal_error", None),
        (ProtocolError("Large.", bytes=7), 413, "too_large", "messages"),
    ],
)
def test_errors_have_a_status_and_say_whose_fault_it_is(
    error: SamplerPoolError, status: int, code: str, param: str | None
) -> None:
    problem = problem_of(error, 3)
    assert (problem.status, problem.code, problem.param, problem.message) == (status, code, param, error.message)
    kinds = {400: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error"}
    assert problem.kind == kinds.get(status, "server_error")
    assert problem.headers.get("Retry-After") == {429: "3", 503: "5"}.get(status)


def test_a_prompt_that_is_too_long_is_named_as_it_came() -> None:
    assert problem_of(PromptTooLong("Long."), prompt="prompt").param == "prompt"


def test_a_long_message_is_told_in_part() -> None:
    told = Problem(400, "x" * 10**6, "invalid_value").body()["error"]["message"]
    assert (len(told) < 3000, told[:9], told[-3:]) == (True, "x" * 9, "...")
    assert Problem(400, "Short.", "invalid_value").body()["error"]["message"] == "Short."


def test_a_bug_does_not_tell_what_it_was_working_on() -> None:
    problem = problem_of(ValueError("the prompt"))
    assert (problem.status, "prompt" in problem.message) == (500, False)
