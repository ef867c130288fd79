"""The HTTP gateway as real clients see it: the packages ``openai`` and ``llm``, and sockets that do not behave."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from samplerpool.data.answers import row_seed
from samplerpool.pool.launcher import LaunchedPool, describe_pool
from samplerpool.wire.endpoint import ConnectionFile, find_pool, running_pools
from tests.process.conftest import eventually
from tests.process.gateways import DEADLINE_S, Served, own_folder
from tests.process.pools import launch

ENDLESS = "[[tokens:30000]][[pace:0.005]]"
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call>'
WITH_PARTS = f"[[say:<think>Let me add.</think>I add. 👋🏽{CALL}]]"
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def ask(text: str) -> Any:
    return [{"role": "user", "content": text}]


def client(served: Served, key: str = "none", **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key=key, max_retries=0, timeout=DEADLINE_S, **more)


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """A gateway with two workers of its own, for tests that leave it as it was."""
    folder = Path(tempfile.mkdtemp(prefix="spt-", dir="/tmp"))
    env = own_folder(folder)
    with Served("--engine", "scripted", "--workers", "2", "--access-log", "all", env=env) as served:
        yield served
    shutil.rmtree(folder)


@pytest.fixture
def gpt(shared: Served) -> Iterator[openai.OpenAI]:
    with client(shared) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[LaunchedPool]:
    """A pool of one worker that no gateway owns."""
    launched = launch()
    yield launched
    launched.stop(0.0)


def request(served: Served, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers, and the body if it is JSON."""
    connection = http.client.HTTPConnection(served.root.removeprefix("http://"), timeout=DEADLINE_S)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, answer.headers, json.loads(text) if text.startswith(b"{") else text.decode()


def opened_request(served: Served, key: str) -> socket.socket:
    """A connection on which a request's body is about to come."""
    host, _, port = served.root.removeprefix("http://").partition(":")
    opened = socket.create_connection((host, int(port)), DEADLINE_S)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
    opened.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode())
    return opened


def in_flight(served: Served) -> int:
    return int(request(served, "GET", "/health")[2]["answers_in_flight"])


def running(connection: ConnectionFile) -> int:
    """Requests that the pool's workers have."""
    return sum(worker["running"] + worker["queued"] for worker in describe_pool(connection)["workers"])


# ---- answers -------------------------------------------------------------------------------------------------------


def test_a_whole_answer(gpt: openai.OpenAI, shared: Served) -> None:
    told = gpt.chat.completions.create(model=shared.model, messages=ask(WITH_PARTS), tools=TOOLS, seed=5)
    (choice,) = told.choices
    assert (told.model, told.object, choice.finish_reason) == ("scripted", "chat.completion", "tool_calls")
    assert choice.message.content == "I add. 👋🏽"
    assert choice.message.reasoning_content == "Let me add."  # type: ignore[attr-defined]
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1, "b": "é"})
    assert choice.seed == 5  # type: ignore[attr-defined]
    assert told.usage is not None
    assert told.usage.completion_tokens == len(WITH_PARTS.encode()) - len("[[say:]]") + 1
    assert told._request_id is not None
    assert told._request_id.removeprefix("req_") == told.id.removeprefix("chatcmpl-")
    again = [*ask(WITH_PARTS), choice.message, {"role": "tool", "tool_call_id": call.id, "content": "[[say:3]]"}]
    assert gpt.chat.completions.create(model=shared.model, messages=again).choices[0].message.content == "3"


def test_a_stream_gives_the_same(gpt: openai.OpenAI, shared: Served) -> None:
    asked: Any = {"model": shared.model, "messages": ask(f"{WITH_PARTS}[[pace:0.001]]"), "n": 2, "logprobs": True}
    whole = gpt.chat.completions.create(**asked, top_logprobs=1)
    with gpt.chat.completions.stream(
        **asked, top_logprobs=1, tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion()
    assert kinds.count("content.delta") > 4
    assert streamed.usage == whole.usage
    for one, other in zip(streamed.choices, whole.choices, strict=True):
        assert (one.finish_reason, one.message.content) == (other.finish_reason, other.message.content)
        assert [call.function.arguments for call in one.message.tool_calls or []] == [
            call.function.arguments  # type: ignore[union-attr]
            for call in other.message.tool_calls or []
        ]
        assert one.logprobs == other.logprobs
        assert one.logprobs is not None
        assert one.logprobs.content is not None
        assert b"".join(bytes(entry.bytes or b"") for entry in one.logprobs.content[:-1]).decode() == (
            WITH_PARTS.removeprefix("[[say:").removesuffix("]]")
        )


async def test_many_streams_at_a_time_from_an_async_client(shared: Served) -> None:
    async with openai.AsyncOpenAI(base_url=shared.url, api_key="none", max_retries=0) as gpt:

        async def one(number: int) -> str:
            messages = ask(f"[[say:answer {number}]][[pace:0.002]]")
            stream = await gpt.chat.completions.create(model=shared.model, messages=messages, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        told = await asyncio.gather(*(one(number) for number in range(32)))
    assert told == [f"answer {number}" for number in range(32)]


def test_answers_with_a_seed_are_reproducible(gpt: openai.OpenAI, shared: Served) -> None:
    def texts(**more: Any) -> list[str | None]:
        told = gpt.chat.completions.create(model=shared.model, messages=ask("[[random:8]]"), **more)
        return [choice.message.content for choice in told.choices]

    three = texts(n=3, seed=7)
    assert len({*three}) == 3
    assert three == texts(n=3, seed=7) == [texts(seed=seed)[0] for seed in (7, row_seed(7, 0, 1), row_seed(7, 0, 2))]
    assert texts() != texts()


def test_texts_to_go_on_with(gpt: openai.OpenAI, shared: Served) -> None:
    prompts = ["<user>[[say:one]]", "<user>[[say:two é]]"]
    asked: Any = {"model": shared.model, "prompt": prompts, "logprobs": 1, "n": 2, "max_tokens": 5}
    whole = gpt.completions.create(**asked)
    assert [(choice.text, choice.finish_reason) for choice in whole.choices] == [
        *[("one", "stop")] * 2,
        *[("two �", "length")] * 2,
    ]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (37, 18)
    texts, tokens = [""] * 4, [[] for _ in range(4)]  # type: ignore[var-annotated]
    for chunk in gpt.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += (choice.logprobs and choice.logprobs.tokens) or []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices if choice.logprobs]
    assert tokens[2] == ["t", "w", "o", " ", "<0xC3>"]
    echoed = gpt.completions.create(model=shared.model, prompt=prompts[0], echo=True)
    assert echoed.choices[0].text == f"{prompts[0]}one"
    ids = gpt.completions.create(model=shared.model, prompt=[[*b"<user>ids"], [*b"<user>more"]])
    assert [choice.text for choice in ids.choices] == ["ids", "more"]


def test_answers_end_where_they_are_told_to(gpt: openai.OpenAI, shared: Served) -> None:
    def told(**more: Any) -> tuple[str | None, str]:
        choice = gpt.chat.completions.create(model=shared.model, messages=ask("[[tokens:300]]"), **more).choices[0]
        return choice.message.content, choice.finish_reason

    assert told(stop=" brown") == ("The quick", "stop")
    assert told(max_completion_tokens=3) == ("The", "length")
    content, reason = told()
    assert (len(content or ""), reason) == (300, "stop")  # of a pool without a word on it: as long as it goes
    assert told(extra_body={"stop_token_ids": [ord("q")]}) == ("The q", "stop")


def test_models_health_and_figures(gpt: openai.OpenAI, shared: Served) -> None:
    assert [model.id for model in gpt.models.list()] == ["scripted"]
    assert gpt.models.retrieve("scripted").owned_by == "samplerpool"
    with pytest.raises(openai.NotFoundError) as missing:
        gpt.models.retrieve("some/other")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="The model 'gpt-9' does not exist; there are: scripted"):
        gpt.chat.completions.create(model="gpt-9", messages=ask("hi"))
    assert request(shared, "GET", "/health")[::2] == (
        200,
        {"status": "ok", "reason": None, "workers": 2, "workers_up": 2, "answers_in_flight": 0},
    )

    def figures() -> dict[tuple[str, ...], float]:
        status, _, text = request(shared, "GET", "/metrics")
        assert status == 200
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name.removeprefix("samplerpool_gateway_"), *sorted(sample.labels.values())): sample.value
                for sample in samples}  # fmt: skip

    before = figures()
    gpt.chat.completions.create(model="scripted", messages=ask("[[say:hello]]"))
    after = figures()
    grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    for key, value in {
        ("requests_total", "answered", "chat"): 1,
        ("completion_tokens_total", "chat"): 6,
        ("prompt_tokens_total", "chat"): len("<user>[[say:hello]]\n<assistant>"),
        ("time_to_first_token_seconds_count", "chat"): 1,
        ("request_duration_seconds_count", "chat"): 1,
    }.items():
        assert grown[key] == value, key
    assert after["answers_in_flight",] == 0
    assert after["answers_limit",] == 256


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "param", "said"),
    [
        ({"messages": ask("[[fail]]")}, openai.InternalServerError, None, "told to fail"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "temperature must be at least 0"),
        ({"logit_bias": {"1": 1}}, openai.BadRequestError, "logit_bias", "cannot honour logit_bias"),
        ({"messages": ask("x" * 40_000)}, openai.BadRequestError, "messages", "40,018 tokens"),
        ({"tool_choice": "required", "tools": TOOLS}, openai.BadRequestError, "tool_choice", "cannot be honoured"),
        ({"extra_body": {"to_k": 1}}, openai.BadRequestError, "to_k", "did you mean 'top_k'?"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]},
            openai.BadRequestError,
            "messages",
            "reads no files",
        ),
    ],
)
def test_errors_before_the_first_word_are_statuses(
    gpt: openai.OpenAI, asked: dict[str, Any], error: type[openai.APIStatusError], param: str | None, said: str
) -> None:
    for stream in (False, True):
        with pytest.raises(error, match=said) as caught:
            gpt.chat.completions.create(**{"model": "scripted", "messages": ask("hi"), **asked}, stream=stream)
        assert caught.value.param == param
        assert caught.value.response.headers["content-type"] == "application/json"


def test_errors_in_the_middle_of_a_stream_are_events(gpt: openai.OpenAI) -> None:
    text = ""
    with pytest.raises(openai.APIError, match="told to fail") as caught:  # noqa: PT012
        asked = ask("[[tokens:20]][[fail:5]][[pace:0.01]]")
        for chunk in gpt.chat.completions.create(model="scripted", messages=asked, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert (text.strip(), caught.value.code) == ("The q", "engine_error")
    with pytest.raises(openai.APIError, match="told to fail"):  # noqa: PT012
        asked = ask("[[tokens:20]][[fail:5]][[pace:0.01]]")
        for _ in gpt.chat.completions.create(model="scripted", messages=asked, stream=True, n=2):
            pass


def test_what_is_no_request_is_refused(shared: Served) -> None:
    def post(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, str]:
        status, _, told = request(shared, "POST", path, body, **{"content_type": "application/json", **headers})
        assert told["error"].keys() == {"message", "type", "param", "code"}
        return status, told["error"]["code"]

    assert post(b"{]") == (400, "invalid_json")
    assert post(b"\xff{}") == (400, "invalid_json")
    assert post(b"[" * 100_000) == (400, "invalid_json")
    assert post(b"[]") == (400, "invalid_value")
    assert post(b"{}", content_type="text/plain") == (415, "unsupported_media_type")
    assert post(b"{}", host="evil.example") == (403, "wrong_host")
    assert post(b"{}", "/v1/embeddings") == (404, "unknown_url")
    assert request(shared, "GET", "/v1/chat/completions")[0] == 405
    assert request(shared, "GET", "/v1/models", host="evil.example")[0] == 403
    assert request(shared, "POST", "/v1/completions", b'{"prompt": "hi"}', content_type="application/json")[0] == 200


# ---- clients that are let in, and clients that are not -------------------------------------------------------------


def test_keys_and_limits(pool: LaunchedPool, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice secret-of-alice\n")
    serve = [sys.executable, "-m", "samplerpool", "serve", "--port", "0"]

    def refused(*arguments: str) -> str:
        done = subprocess.run([*serve, *arguments], capture_output=True, text=True, timeout=DEADLINE_S)
        assert (done.returncode in (1, 2), "Traceback" in done.stderr) == (True, False)
        return done.stderr

    keys.chmod(0o644)
    assert "may be read by others" in refused("--api-key-file", str(keys))
    keys.chmod(0o600)
    assert "without keys it answers all of them" in refused("--host", "0.0.0.0")
    assert "needs --model" in refused("--workers", "2")

    limits = ("--max-requests", "2", "--max-body", "1000", "--request-timeout", "1.5")
    env = {"SAMPLERPOOL_API_KEY": "secret-of-the-env"}
    with Served("--api-key-file", str(keys), *limits, "--access-log", "all", env=env) as served:
        for key in ("none", "secret-of-alic"):
            with client(served, key) as gpt, pytest.raises(openai.AuthenticationError) as caught:
                gpt.models.list()
            assert caught.value.code == "invalid_api_key"
            with client(served, key) as gpt, pytest.raises(openai.AuthenticationError):
                gpt.chat.completions.create(model="scripted", messages=ask("hi"))
        assert request(served, "GET", "/metrics")[0] == 401
        assert request(served, "GET", "/health")[0] == 200
        with client(served, "secret-of-the-env") as gpt:
            assert [model.id for model in gpt.models.list()] == ["scripted"]
        with client(served, "secret-of-alice") as gpt:
            with pytest.raises(openai.APIStatusError) as large:
                gpt.chat.completions.create(model="scripted", messages=ask("x" * 1000))
            assert (large.value.status_code, large.value.code) == (413, "too_large")
            with pytest.raises(openai.BadRequestError, match="gives 2 at most"):
                gpt.chat.completions.create(model="scripted", messages=ask("hi"), n=3)
            bodies = [opened_request(served, "secret-of-alice") for _ in range(2)]  # in memory while they come
            eventually(lambda: in_flight(served) == 2, "both bodies have a place")
            with pytest.raises(openai.RateLimitError):
                gpt.chat.completions.create(model="scripted", messages=ask("hi"))
            for body in bodies:
                body.close()
            eventually(lambda: in_flight(served) == 0, "none has")
            with gpt.chat.completions.create(model="scripted", messages=ask(ENDLESS), stream=True, n=2) as stream:
                next(stream)
                with pytest.raises(openai.RateLimitError) as full:
                    gpt.chat.completions.create(model="scripted", messages=ask("hi"))
                assert int(full.value.response.headers["retry-after"]) >= 1
                with pytest.raises(openai.APIError, match=r"longer than the 1\.5 s") as late:
                    list(stream)
                assert late.value.code == "timeout"
            with pytest.raises(openai.InternalServerError) as late_whole:
                gpt.chat.completions.create(model="scripted", messages=ask(ENDLESS))
            assert late_whole.value.status_code == 504
            assert gpt.chat.completions.create(model="scripted", messages=ask("hi")).choices[0].message.content == "hi"
        said = served.said()
    assert "key=alice" in said
    assert not [word for word in ("secret", "quick", ENDLESS) if word in said]
    assert running(pool.connection) == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answers(pool: LaunchedPool, stream: bool) -> None:
    with Served() as served:
        body = json.dumps({"messages": ask(ENDLESS), "stream": stream, "n": 2}).encode()
        with socket.create_connection(("127.0.0.1", int(served.root.rpartition(":")[2])), DEADLINE_S) as gone:
            head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            gone.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
            eventually(lambda: running(pool.connection) == 2, "both answers run")
            if stream:
                assert gone.recv(100).startswith(b"HTTP/1.1 200")
        eventually(lambda: running(pool.connection) == 0, "nothing runs for a client that has left")
        eventually(lambda: in_flight(served) == 0, "its places are free")
        assert 'outcome="disconnected"' in request(served, "GET", "/metrics")[2]


# ---- workers and servers that end ----------------------------------------------------------------------------------


def test_an_answer_outlives_its_worker_and_a_lost_pool_is_told(pool: LaunchedPool) -> None:
    with Served() as served, client(served) as gpt:
        text = "the same words as ever, whoever says them"
        stream = gpt.chat.completions.create(
            model="scripted", messages=ask(f"[[say:{text}]][[pace:0.02]]"), stream=True
        )
        told = "".join(next(stream).choices[0].delta.content or "" for _ in range(4))
        os.kill(find_pool(pool.connection.pool).workers[0].process.pid, signal.SIGKILL)
        eventually(lambda: request(served, "GET", "/health")[0] == 503, "no worker is there")
        told += "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert told == text
        worker = find_pool(pool.connection.pool).workers[0].process.pid
        eventually(lambda: request(served, "GET", "/health")[0] == 200, "it is back")
        os.kill(worker, signal.SIGSTOP)
        try:
            eventually(lambda: "does not answer" in str(request(served, "GET", "/health")[2]), "a silent worker")
        finally:
            os.kill(worker, signal.SIGCONT)
        stream = gpt.chat.completions.create(model="scripted", messages=ask(ENDLESS), stream=True)
        next(stream)
        pool.stop(0.0)
        with pytest.raises(openai.APIError) as broken:
            list(stream)
        assert broken.value.code == "unavailable"
        with pytest.raises(openai.InternalServerError) as lost:
            gpt.chat.completions.create(model="scripted", messages=ask("hi"))
        assert (lost.value.status_code, lost.value.code) == (503, "unavailable")
        status, _, health = request(served, "GET", "/health")
        assert (status, health["status"]) == (503, "unavailable")


def test_a_pool_that_is_started_anew_is_served_again() -> None:
    first = launch(private=False, pool="mine")
    with Served("--pool", "mine") as served, client(served) as gpt:
        first.stop(0.0)
        eventually(lambda: request(served, "GET", "/health")[0] == 503, "the pool is lost")
        second = launch(private=False, pool="mine")
        try:
            eventually(lambda: request(served, "GET", "/health")[0] == 200, "the next one is found")
            told = gpt.chat.completions.create(model="scripted", messages=ask("[[say:back]]"))
            assert told.choices[0].message.content == "back"
        finally:
            second.stop(0.0)


def test_the_end_lets_running_answers_end_and_refuses_new_ones(pool: LaunchedPool) -> None:
    with Served("--timeout", "20") as served, client(served) as gpt:
        asked: Any = {"model": "scripted", "messages": ask("[[tokens:60]][[pace:0.02]]"), "stream": True}
        stream = gpt.chat.completions.create(**asked)
        chunks = [next(stream)]
        served.process.send_signal(signal.SIGTERM)
        served.waits_for("Stopping: 1 answer in progress may take 20 s more")
        with pytest.raises(openai.InternalServerError, match="being stopped") as refused:
            gpt.chat.completions.create(**asked)
        assert refused.value.status_code == 503
        assert request(served, "GET", "/health")[0] == 503
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert served.process.wait(DEADLINE_S) == 0
    assert [connection.pool for connection in running_pools()] == [pool.connection.pool]


def test_a_second_ctrl_c_breaks_them_off_and_an_own_pool_ends() -> None:
    with Served("--engine", "scripted", "--timeout", "60") as served, client(served) as gpt:
        stream = gpt.chat.completions.create(model="scripted", messages=ask(ENDLESS), stream=True)
        next(stream)
        served.process.send_signal(signal.SIGINT)
        served.waits_for("Stopping")
        served.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="being stopped"):
            list(stream)
        assert served.process.wait(DEADLINE_S) == 0
        assert served.said().endswith("Stopped.\n")
    assert running_pools() == []


# ---- another client ------------------------------------------------------------------------------------------------


def test_the_client_llm(shared: Served, tmp_path: Path) -> None:
    model = {"model_id": "mine", "model_name": "scripted", "api_base": shared.url, "supports_tools": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}

    def llm(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", "prompt", "-m", "mine", *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout if done.returncode == 0 else done.stderr

    assert llm("[[say:streamed é]]", "-s", "Be brief.") == "streamed é\n"
    assert "told to fail" in llm("[[fail]]", "--no-stream", "-o", "temperature", "0.5", "-o", "max_tokens", "3")
    function = "def add(a: int, b: str) -> str:\n    return f'[[say:the sum is {a}{b}]]'"
    assert llm(f"[[say:{CALL}]]", "--functions", function) == "the sum is 1é\n"
