"""``SyncSampler`` against a real worker process: streams, errors, aborts, ends."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgpack
import pytest
import zmq

from samplerpool import SyncSampler
from samplerpool.client.connection import Call, PoolConnection, WorkerAddress
from samplerpool.config.arguments import ModelArguments, SampleArguments
from samplerpool.data.messages import to_v1
from samplerpool.engine.scripted import ScriptedRenderer
from samplerpool.errors import (
    EngineBroken,
    EngineError,
    InvalidParameter,
    PromptTooLong,
    RenderError,
    UnsupportedParameter,
    UsageError,
    WrongIncarnation,
)
from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.messages import ChatPrompt, Failed, Generate, TokenPrompt
from tests.process.conftest import DEADLINE_S, eventually

ENDLESS = "[[tokens:30000]][[pace:0.005]]"


def running(sampler: SyncSampler) -> int:
    figures = sampler.connection.describe(0, timeout_s=DEADLINE_S)
    return int(figures["running"] + figures["queued"] + figures["live"])


def test_an_answer_streams_and_is_reported(sampler: SyncSampler) -> None:
    stream = sampler.generate([{"role": "user", "content": "[[say:héllo 👋 wörld]][[pace:0.002]]"}], seed=7)
    parts = list(stream)
    assert "".join(parts) == "héllo 👋 wörld"
    assert len(parts) > 5
    assert all(parts)
    last = sampler.last
    assert last is not None
    assert (last.seed, last.finish_reason, last.completion_tokens) == (7, "stop", len("héllo 👋 wörld".encode()) + 1)


def test_v1_messages_system_prompts_and_plain_strings_are_taken(sampler: SyncSampler) -> None:
    v1 = [{"role": "user", "content": [{"type": "text", "value": "one"}, {"type": "text", "value": " two"}]}]
    assert "".join(sampler.generate(v1)) == "one two"
    assert "".join(sampler.generate("plain")) == "plain"


def test_template_options_are_names_and_values(sampler: SyncSampler) -> None:
    assert "".join(sampler.generate("[[say:yes]]", template_options={"enable_thinking": False})) == "yes"
    with pytest.raises(InvalidParameter, match="template_options must be a mapping of names to values"):
        sampler.generate("Hello", template_options=3)  # type: ignore[arg-type]


def test_tools_may_be_a_list_as_in_rows(sampler: SyncSampler) -> None:
    assert "".join(sampler.generate("[[say:yes]]", [{"type": "function", "function": {"name": "f"}}])) == "yes"
    with pytest.raises(RenderError, match="tools cannot be written as JSON"):
        sampler.generate("[[say:yes]]", [{"names": {1}}])


def test_stop_strings_and_limits(sampler: SyncSampler) -> None:
    assert "".join(sampler.generate("[[say:one two three]]", stop="two")) == "one "
    assert sampler.last is not None
    assert sampler.last.finish_reason == "stop"
    assert "".join(sampler.generate("[[say:one two three]]", max_new_tokens=5)) == "one t"
    assert sampler.last.finish_reason == "length"


def test_logprobs_come_with_the_call_and_with_the_rows(sampler: SyncSampler) -> None:
    assert "".join(sampler.generate("[[say:ab]]", logprobs=2)) == "ab"
    assert sampler.last is not None
    expected = [(97, -0.98, [(0, -0.01), (1, -0.02)]), (98, -0.99, [(0, -0.01), (1, -0.02)]), (256, -2.57, ANY)]
    assert sampler.last.logprobs == expected
    (row,) = sampler.batch_infer([{"messages": "[[say:ab]]"}], logprobs=0)
    assert [entry["token_id"] for entry in row["generation"]["logprobs"]] == [97, 98, 256]
    assert row["generation"]["logprobs"][0] == {"token_id": 97, "logprob": -0.98, "top": []}
    list(sampler.generate("[[say:ab]]"))
    assert sampler.last.logprobs is None
    (row,) = sampler.batch_infer([{"messages": "[[say:ab]]"}])
    assert "logprobs" not in row["generation"]


def test_errors_arrive_as_their_own_class(sampler: SyncSampler) -> None:
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (EngineError, "[[fail:2]]", {}),
        (EngineBroken, "[[raise:2]]", {}),
        (InvalidParameter, "[[dance:2]]", {}),
        (InvalidParameter, "x", {"temperature": -1}),
        (InvalidParameter, "x", {"tempperature": 1}),
        (UnsupportedParameter, "x", {"repetition_penalty": 1.5}),
        (PromptTooLong, "x" * 40000, {}),
        (RenderError, "\ud800", {}),
    ]
    for kind, prompt, params in cases:
        with pytest.raises(kind):
            list(sampler.generate(prompt, **params))
    with pytest.raises(RenderError):
        list(sampler.generate([{"role": "user", "content": [{"type": "image_url", "value": "x.png"}]}]))
    assert "".join(sampler.generate("still here")) == "still here"
    assert running(sampler) == 0


def test_closing_the_generator_aborts_in_the_worker(sampler: SyncSampler) -> None:
    stream = sampler.generate(ENDLESS, max_new_tokens=30000)
    next(stream)
    assert running(sampler) > 0
    stream.close()
    eventually(lambda: running(sampler) == 0, "the request is gone from the worker")


def test_a_dropped_generator_aborts_in_the_worker(sampler: SyncSampler) -> None:
    stream = sampler.generate(ENDLESS, max_new_tokens=30000)
    next(stream)
    del stream
    eventually(lambda: running(sampler) == 0, "the request is gone from the worker")


def test_many_threads_share_one_sampler(sampler: SyncSampler) -> None:
    def ask(number: int) -> str:
        return "".join(sampler.generate(f"[[say:answer {number} ✓]]"))

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, range(200)))
    assert answers == [f"answer {number} ✓" for number in range(200)]


def test_a_seed_gives_the_same_answer_at_any_worker_also_one_that_was_drawn(two_workers: SyncSampler) -> None:
    def ask(worker: int, **seed: int) -> tuple[int, str]:
        call = Call(ChatPrompt(to_v1("[[random:12]]"), None, {}), seed)
        two_workers.connection.submit(worker, [call])
        eventually(lambda: call.done, "the answer is complete")
        assert call.seed is not None
        return call.seed, call.text

    assert ask(0, seed=7) == ask(1, seed=7)
    drawn = ask(0)
    assert drawn[1] != ask(0, seed=7)[1]
    assert ask(1, seed=drawn[0]) == drawn


def test_after_a_fork_the_child_is_told_to_connect_again(sampler: SyncSampler) -> None:
    child = os.fork()
    if child == 0:
        try:
            list(sampler.generate("x"))
        except UsageError as error:
            os._exit(0 if "fork" in error.message else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "".join(sampler.generate("parent")) == "parent"


def test_a_fork_that_closes_its_copy_does_not_stop_the_pool(sampler: SyncSampler) -> None:
    child = os.fork()
    if child == 0:
        sampler.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert "".join(sampler.generate("parent")) == "parent"


def test_a_closed_sampler_says_so_and_ends_its_streams() -> None:
    sampler = SyncSampler.launch(engine="scripted", devices="cpu")
    ended = threading.Event()

    def consume() -> None:
        try:
            for _ in sampler.generate(ENDLESS, max_new_tokens=30000):
                started.set()
        except Exception:
            ended.set()

    started = threading.Event()
    thread = threading.Thread(target=consume)
    thread.start()
    assert started.wait(DEADLINE_S)
    sampler.close()
    thread.join(DEADLINE_S)
    assert ended.is_set()
    sampler.close()
    with pytest.raises(UsageError, match="closed"):
        list(sampler.generate("x"))


def test_an_old_incarnation_is_refused(sampler: SyncSampler) -> None:
    assert sampler.connection_file is not None
    worker = sampler.connection_file.workers[0]
    with PoolConnection([WorkerAddress(0, worker.endpoint, "an older one")]) as connection:
        done = threading.Event()
        call = Call(ChatPrompt([]), on_update=lambda call: done.set() if call.done else None)
        connection.submit(0, [call])
        assert done.wait(DEADLINE_S)
        assert isinstance(call.error, WrongIncarnation)


def test_garbage_and_silence_of_others_do_not_touch_an_honest_stream(sampler: SyncSampler) -> None:
    assert sampler.connection_file is not None
    worker = sampler.connection_file.workers[0]
    stream = sampler.generate("[[tokens:400]][[pace:0.002]]", max_new_tokens=500)
    text = next(stream)
    context = zmq.Context()
    vandal, sleeper = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for socket in (vandal, sleeper):
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.connect(worker.endpoint)
    try:
        for garbage in (b"", b"\xc1", os.urandom(200), b"\x91" * 3000, b"\xdd\xff\xff\xff\xff"):
            vandal.send(garbage)
            vandal.send_multipart([garbage, garbage])
        messages = [{"role": "user", "content": [{"type": "text", "value": "[[tokens:20000]]"}]}]
        sleeper.send(encode([Generate(1, worker.incarnation, ChatPrompt(messages), {"max_new_tokens": 20000})]))
        text += "".join(stream)
    finally:
        vandal.close()
        sleeper.close()
        context.term()
    assert len(text) == 400
    eventually(lambda: running(sampler) == 0, "the vanished client's request is gone")


def test_the_interpreter_ends_at_once_in_mid_stream() -> None:
    code = (
        "from samplerpool import SyncSampler\n"
        "s = SyncSampler.launch(engine='scripted', devices='cpu')\n"
        f"g = s.generate({ENDLESS!r}, max_new_tokens=30000)\n"
        "print(next(g), flush=True)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert child.returncode == 0, child.stderr
    assert "Traceback" not in child.stderr


def test_ctrl_c_in_mid_answer_aborts_and_the_sampler_goes_on() -> None:
    code = (
        "from samplerpool import SyncSampler\n"
        "with SyncSampler.launch(engine='scripted', devices='cpu') as s:\n"
        "    try:\n"
        f"        for text in s.generate({ENDLESS!r}, max_new_tokens=30000):\n"
        "            print('.', end='', flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped', flush=True)\n"
        "    print(''.join(s.generate('again')), flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child, child.stdout:
        assert child.stdout.read(1) == "."
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
        assert child.wait(DEADLINE_S) == 0
    assert rest.endswith("stopped\nagain\n")


def test_a_model_in_this_process_is_hosted_on_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = SampleArguments(sample_backend="scripted", max_new_tokens=50)
    with SyncSampler(arguments, ModelArguments(), None, ScriptedRenderer()) as sampler:
        assert "".join(sampler.generate([{"role": "user", "content": "here"}])) == "here"
        samples = sampler.batch_infer([{"prompt": "a"}, {"prompt": "b"}])
        assert [s["generation"]["text"] for s in samples] == ["a", "b"]
        with pytest.raises(EngineBroken):
            list(sampler.generate("[[raise]]"))
        assert "".join(sampler.generate("still here")) == "still here"


def test_what_is_no_renderer_and_no_arguments_is_named() -> None:
    with pytest.raises(
        InvalidParameter, match=r"args must be SampleArguments\(...\), not dict\. renderer .* not int\."
    ):
        SyncSampler({"temperature": 0.5}, ModelArguments(), object(), 3)  # type: ignore[arg-type]


def test_a_hosted_model_that_nobody_closed_leaves_no_socket_file(own_folders: Path) -> None:
    code = (
        "from samplerpool import SyncSampler\n"
        "from samplerpool.config.arguments import ModelArguments, SampleArguments\n"
        "from samplerpool.engine.scripted import ScriptedRenderer\n"
        "s = SyncSampler(SampleArguments(sample_backend='scripted'), ModelArguments(), None, ScriptedRenderer())\n"
        "print(''.join(s.generate('here')))\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (child.returncode, child.stdout) == (0, "here\n"), child.stderr
    assert list((own_folders / "run").iterdir()) == []


def test_tokens_that_are_none_cost_their_request_alone(sampler: SyncSampler) -> None:
    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    call = Call(TokenPrompt([65], [300]), {"max_new_tokens": 5}, stream=False, on_update=ended.put)
    sampler.connection.submit(0, [call])
    error = ended.get(timeout=DEADLINE_S).error
    assert isinstance(error, RenderError)
    assert "token id 300" in error.message
    assert "".join(sampler.generate("still here")) == "still here"


def test_a_huge_malformed_entry_costs_nobody_else_anything(sampler: SyncSampler) -> None:
    assert sampler.connection_file is not None
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        stranger.connect(sampler.connection_file.workers[0].endpoint)
        stranger.send(msgpack.packb([1, [["\0" * 20_000_000, 5]]]))  # shown as text, it is too long for an answer
        (reply,) = decode_replies(stranger.recv())
        assert isinstance(reply, Failed)
        assert (reply.request_id, reply.error) == (5, "ProtocolError")
        assert "".join(sampler.generate("still here")) == "still here"
