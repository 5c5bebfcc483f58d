"""Answer 400 where vLLM fails though the request is at fault. What is not listed stays the server's: 500."""

import asyncio
import json

from .refusal import Refusal

# The head of an answer waits for its body: a fault can be told by then, and SkyServe's balancer asks another
# replica if this one dies. Not longer, as its client takes a request that is long without an answer for lost.
HELD_SECONDS = 10
FAULTS = {  # a part of what vLLM, Pillow or Python says -> what the client is told
    "could be decompression bomb": "A picture has more pixels than are decoded here.",
    "prompt placeholders corresponding to": "A picture has to be a part of a user's message, in this form: "
    '{"type": "image_url", "image_url": {"url": "..."}}.',
    "maximum recursion depth exceeded": "The request is nested too deeply.",
}


def fault(said, constrained):
    """A Refusal if what is ``said`` is the request's fault, else None."""
    words = next((words for part, words in FAULTS.items() if part in said), None)
    if constrained and "Internal server error" in said:  # the engine's, of a single request
        words = "The schema or grammar of the answer is too complex."
    return Refusal(400, "invalid_request", words) if words else None


async def judged(app, scope, receive, send, constrained):
    """Run the app. Raises Refusal if it fails before it says anything, and the request is at fault.

    ``constrained`` says whether the request has a schema or grammar for its answer.
    """
    start, begun, refusal, later = None, False, None, None

    async def begin():
        nonlocal begun
        if not begun:
            begun = True
            await send(start)

    async def begin_later():
        await asyncio.sleep(HELD_SECONDS)
        await begin()

    async def judging_send(message):
        nonlocal start, refusal, later
        if message["type"] == "http.response.start":
            start = message
            later = asyncio.ensure_future(begin_later()) if message["status"] < 500 else None
        elif not refusal:
            if not begun and start["status"] >= 500:
                refusal = fault(message.get("body", b"").decode(errors="replace"), constrained)
                if refusal:
                    return
            await begin()
            await send(message)

    try:
        await app(scope, receive, judging_send)
    except Exception as error:
        # Responses reads a grammar when its stream has begun, and would break off without a word.
        cause = error.__cause__ or error
        if "VLLMClientError" in [each.__name__ for each in type(cause).__mro__]:
            refusal = Refusal(400, "invalid_request", str(cause))
        refusal = refusal or fault(str(error), constrained)
        if begun and refusal and b"event-stream" in dict(start["headers"]).get(b"content-type", b""):
            said = {"code": refusal.code, "message": str(refusal)}
            event = json.dumps({"type": "error", **said, "error": said})
            await send({"type": "http.response.body", "body": f"event: error\ndata: {event}\n\n".encode()})
        elif begun or not refusal:
            raise
    finally:
        if later:
            later.cancel()
    if refusal and not begun:
        raise refusal
