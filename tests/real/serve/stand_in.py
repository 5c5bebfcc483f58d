"""A light stand-in for vLLM: the `vllm serve ...` that the script of service.yaml starts on a replica of the rig.

It takes the flags that it needs, puts the real gateway before itself, and answers as vLLM does: the head of
a streamed answer goes out at once, before its first token; who hangs up is not worked for any longer. What is
asked, and what came of it, it notes in $MACHINE/requests. What $MACHINE/mood says, it does:

    hang    a chat is taken and never answered, and so is the gateway's own request
    error   both are answered 500

The gateway's periods are shorter by $SERVE_SPEED.

A question is JSON: its `id`, the `tokens` of the answer, the seconds of `delay` before the first of them and of
`pace` between two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MACHINE = Path(os.environ.get("MACHINE", "."))


def words(question: dict[str, Any]) -> list[str]:
    """The answer to a question, in its pieces: nobody mistakes it for another's, nor misses one of them."""
    return [f"{question['id']}:", *(f" {number}" for number in range(question["tokens"]))]


def note(question: dict[str, Any], what: str) -> None:
    line = json.dumps({"id": question["id"], "what": what, "at": time.time()})
    with (MACHINE / "requests").open("a") as file:
        file.write(f"{line}\n")


def mood() -> str:
    with contextlib.suppress(FileNotFoundError):
        return (MACHINE / "mood").read_text()
    return ""


def asked(body: dict[str, Any]) -> dict[str, Any]:
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    # A batch asks something small of its own, to see whether it is answered.
    question = json.loads(text) if text.startswith("{") else {"id": "small", "tokens": 1}
    return {"delay": 0.0, "pace": 0.0, "tokens": 8, **question}


async def chat(request: Request) -> Response:
    body = await request.json()
    question = asked(body)
    note(question, "begins")
    if mood() == "error":
        note(question, "fails")
        error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
        return JSONResponse({"error": error}, 500)
    if body.get("stream"):
        return StreamingResponse(streamed(question), media_type="text/event-stream")
    work = asyncio.create_task(whole(question))
    left = asyncio.create_task(hung_up(request))
    done, _ = await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    if work in done:
        note(question, "ends")
        return JSONResponse(work.result())
    work.cancel()
    note(question, "is left")
    return Response(status_code=499)


async def completions(_: Request) -> Response:
    """The smallest request, with which the gateway asks whether the engine answers."""
    while mood() == "hang":
        await asyncio.sleep(0.2)
    return JSONResponse({}, 500 if mood() == "error" else 200)


async def hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def whole(question: dict[str, Any]) -> dict[str, Any]:
    pieces = [piece async for piece in generated(question)]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(pieces)},
        "finish_reason": "stop",
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "pixtral",
        "choices": [choice],
    }


async def streamed(question: dict[str, Any]) -> AsyncIterator[str]:
    ended = False

    def chunk(**fields: Any) -> str:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "pixtral"}
        return f"data: {json.dumps({**head, **fields})}\n\n"

    try:
        first = True
        async for piece in generated(question):
            if first:  # as vLLM does: the role, with the first token
                yield chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
                first = False
            yield chunk(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        yield chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        yield chunk(choices=[], usage={"prompt_tokens": 1, "completion_tokens": question["tokens"]})
        yield "data: [DONE]\n\n"
        ended = True
    finally:
        note(question, "ends" if ended else "is left")


async def generated(question: dict[str, Any]) -> AsyncIterator[str]:
    while mood() == "hang":
        await asyncio.sleep(0.2)
    await asyncio.sleep(question["delay"])
    for piece in words(question):
        yield piece
        await asyncio.sleep(question["pace"])


async def models(_: Request) -> Response:
    return JSONResponse(
        {"object": "list", "data": [{"id": "pixtral", "object": "model", "max_model_len": 32768}]}
    )


async def health(_: Request) -> Response:
    return Response()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    for name in ("--host", "--port", "--middleware", "--h11-max-incomplete-event-size"):
        parser.add_argument(name, required=True)
    flags, _ = parser.parse_known_args()
    app: Any = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ]
    )
    module, _, name = flags.middleware.rpartition(".")
    gateway = importlib.import_module(module)
    readiness = importlib.import_module(gateway.Readiness.__module__)
    for period in ("SILENCE", "EVERY", "PATIENCE"):
        setattr(readiness, period, getattr(readiness, period) / float(os.environ.get("SERVE_SPEED", 1)))
    app.add_middleware(getattr(gateway, name))
    (MACHINE / "server").write_text(str(os.getpid()))
    uvicorn.run(
        app,
        host=flags.host,
        port=int(flags.port),
        access_log=False,
        log_level="warning",
        timeout_keep_alive=5,  # vLLM's
        h11_max_incomplete_event_size=int(flags.h11_max_incomplete_event_size),
    )


if __name__ == "__main__":
    main()
