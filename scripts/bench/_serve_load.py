"""The load process of ``serve.py``: asks for the same answers through ``AsyncSampler``, or over HTTP.

Reads lines from standard input, each the JSON of a ``Load``; answers each with a line: seconds, tokens, and the CPU
seconds that this process used.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from samplerpool import AsyncSampler


@dataclass(frozen=True)
class Load:
    """Streams at a time, one request each.

    Args:
        way: ``direct``; ``http`` (a client that only looks for ends of events); ``openai`` (the package).
        prompts: one a stream.
        tokens: that each answer has.
    """

    way: str
    prompts: list[str]
    tokens: int


class Loader:
    """Asks.

    Args:
        sampler: of the pool.
        port: of the gateway, on the loopback.
    """

    def __init__(self, sampler: AsyncSampler, port: int) -> None:
        self._sampler = sampler
        self._port = port

    async def run(self, load: Load) -> dict[str, float]:
        """All streams of a load, at once."""
        ask = {"direct": self._direct, "http": self._http, "openai": self._openai}[load.way]
        start, cpu = time.perf_counter(), time.process_time()
        told = await asyncio.gather(*(ask(prompt, load.tokens, seed) for seed, prompt in enumerate(load.prompts)))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        firsts = sorted(first - start for first, _ in told)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "tokens": sum(tokens for _, tokens in told),
            "first_token_s": firsts[len(firsts) // 2],
        }

    async def _direct(self, prompt: str, tokens: int, seed: int) -> tuple[float, int]:
        stream = self._sampler.generate(prompt, seed=seed, **_params(tokens))
        first = 0.0
        async for _ in stream:
            first = first or time.perf_counter()
        return first, stream.answer.completion_tokens

    async def _http(self, prompt: str, tokens: int, seed: int) -> tuple[float, int]:
        body = json.dumps(_body(prompt, tokens, seed)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        first, tail = 0.0, b""
        while chunk := await reader.read(65536):
            first = first or time.perf_counter()
            tail = (tail + chunk)[-2000:]
        writer.close()
        assert b"[DONE]" in tail, tail.decode()
        usage = json.loads(tail.split(b"data: ")[-2])["usage"]
        return first, usage["completion_tokens"]

    async def _openai(self, prompt: str, tokens: int, seed: int) -> tuple[float, int]:
        client = self._client()
        first, count = 0.0, 0
        body = _body(prompt, tokens, seed)
        extra = {"ignore_eos": body.pop("ignore_eos")}
        async for chunk in await client.chat.completions.create(**body, extra_body=extra):
            first = first or time.perf_counter()
            count = chunk.usage.completion_tokens if chunk.usage else count
        return first, count

    def _client(self) -> Any:
        import openai

        if not hasattr(self, "_opened"):
            self._opened = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{self._port}/v1", api_key="none")
        return self._opened


def _params(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}


def _body(prompt: str, tokens: int, seed: int) -> dict[str, Any]:
    return {
        "model": None,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": seed,
        "ignore_eos": True,
    }


async def main(pool: str, port: int) -> None:
    """Until the end of the input."""
    async with AsyncSampler.connect(pool) as sampler:
        loader = Loader(sampler, port)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await loader.run(Load(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
