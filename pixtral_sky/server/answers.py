"""Answer 400 where vLLM says 500 or 501 though the request is at fault.

What vLLM cannot answer comes through here as an exception; an answer is known by its message. What is not
listed stays as it is: a dying engine says 500.
"""

import json

FAULTS = {  # a part of what vLLM, Pillow or Python says -> what the client is told
    "could be decompression bomb": "A picture has more pixels than are decoded here.",
    "prompt placeholders corresponding to": "A picture has to be a part of a user's message, in this form: "
    '{"type": "image_url", "image_url": {"url": "..."}}.',
    "Cannot load local files": "A picture's URL has to begin with https://, http:// or data:.",
    "Only base64 data URLs": "A picture's data URL has to look like data:image/png;base64,...",
    "maximum recursion depth exceeded": "The request is nested too deeply.",
}


def fault(said, body):
    """What the client is told if the request with this decoded `body` is at fault for what was `said`."""
    for part, words in FAULTS.items():
        if part in said:
            return words
    if isinstance(top_k := body.get("top_k"), int) and top_k >= 2**64:
        return "top_k is too large."
    # The same is said, once, of a picture that vLLM has lost from its cache.
    grammar = any(body.get(key) for key in ("structured_outputs", "response_format", "text"))
    if "Internal server error" in said and grammar and "image" not in repr(body):
        return "The regex or grammar is too complex."
    return None


async def judged(app, scope, receive, send, body, refuse):
    """Run `app` on a request with this decoded `body`; `refuse(send, status, code, message)` may answer."""
    start, held, refused = None, False, False  # one of 5xx is held back until its body says whose fault it is

    async def judging_send(message):
        nonlocal start, held, refused
        if message["type"] == "http.response.start":
            start, held = message, message["status"] >= 500
        elif held:
            words = fault(message.get("body", b"").decode(errors="replace"), body)
            held, refused = False, bool(words)
            await (refuse(send, 400, "invalid_request", words) if words else send(start))
        if not held and not refused:
            await send(message)

    try:
        await app(scope, receive, judging_send)
    except Exception as error:
        words = fault(str(error), body)
        if words and not start:
            return await refuse(send, 400, "invalid_request", words)
        if start and b"text/event-stream" in dict(start["headers"]).get(b"content-type", b""):
            # /v1/responses reads its grammar when it streams already, and would break off without a word.
            await send({"type": "http.response.body", "body": last_event(error.__cause__)})
        raise


def last_event(error):
    """A server-sent event that says why the stream ends; of a fault of the server, only that it is one."""
    said = {"code": "server_error", "message": "The server failed."}
    if "VLLMClientError" in [each.__name__ for each in type(error).__mro__]:
        said = {"code": "invalid_request", "message": str(error)}
    return b"event: error\ndata: %b\n\n" % json.dumps({"type": "error", **said, "error": said}).encode()
