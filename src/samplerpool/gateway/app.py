"""The gateway's addresses, as a Starlette application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from samplerpool.data.json_text import to_json
from samplerpool.data.openai_requests import CHAT, COMPLETION
from samplerpool.gateway.admission import check_host
from samplerpool.gateway.exchange import AnswerEndpoint
from samplerpool.gateway.problems import Problem, problem_of
from samplerpool.gateway.service import Gateway


def application(gateway: Gateway) -> Starlette:
    """All that is served."""

    async def models(request: Request) -> Response:
        if problem := _refusal(gateway, request):
            return _told(problem)
        return _json(200, gateway.catalog.listed())

    async def model(request: Request) -> Response:
        if problem := _refusal(gateway, request):
            return _told(problem)
        found = gateway.catalog.entry(request.path_params["name"])
        return _told(found) if isinstance(found, Problem) else _json(200, found)

    async def health(request: Request) -> Response:
        trouble = await gateway.look()
        if gateway.places.closed:
            trouble = "The server is being stopped."
        body = {
            "status": "unavailable" if trouble else "ok",
            "reason": trouble or None,
            "workers": len(gateway.workers),
            "workers_up": sum(facts.up and facts.answered for facts in gateway.workers),
            "answers_in_flight": gateway.places.taken,
        }
        return _json(503 if trouble else 200, body)

    async def metrics(request: Request) -> Response:
        if problem := _refusal(gateway, request):
            return _told(problem)
        text, media_type = gateway.figures.told(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type})

    async def no_such_address(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        text = f"There is no {where} here; see GET /v1/models, POST {CHAT}, POST {COMPLETION}, GET /health, /metrics."
        return _told(Problem(error.status_code, text, "unknown_url", headers=dict(error.headers or {})))

    async def failed(request: Request, error: Exception) -> Response:
        return _told(problem_of(error))  # uvicorn logs it

    return Starlette(
        routes=[
            Route(CHAT, AnswerEndpoint(gateway, chat=True), methods=["POST"]),
            Route(COMPLETION, AnswerEndpoint(gateway, chat=False), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: no_such_address, Exception: failed},
    )


def _refusal(gateway: Gateway, request: Request) -> Problem | None:
    name = gateway.keys.name(request.headers.get("authorization"))
    if isinstance(name, Problem):
        return name
    return check_host(request.headers.get("host")) if gateway.settings.local_only else None


def _told(problem: Problem) -> Response:
    return _json(problem.status, problem.body(), problem.headers)


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")
