"""Answer 400 where vLLM fails though the request is at fault. What is not listed stays the server's: 500."""

from .refusal import Refusal

FAULTS = {  # a part of what vLLM, Pillow or Python says -> what the client is told
    "could be decompression bomb": "A picture has more pixels than are decoded here.",
    "prompt placeholders corresponding to": "A picture has to be a part of a user's message, in this form: "
    '{"type": "image_url", "image_url": {"url": "..."}}.',
    "maximum recursion depth exceeded": "The request is nested too deeply.",
}


async def judged(app, scope, receive, send):
    """Run the app. Raises Refusal if it fails before its answer has begun, and the request is at fault."""
    start, begun, refusal = None, False, None  # one of 5xx is held back until its body says whose fault it is

    def fault(said):
        words = next((words for part, words in FAULTS.items() if part in said), None)
        return Refusal(400, "invalid_request", words) if words else None

    async def judging_send(message):
        nonlocal start, begun, refusal
        if message["type"] == "http.response.start" and message["status"] >= 500:
            start = message
        elif not refusal:
            if start:
                held, start = start, None
                refusal = fault(message.get("body", b"").decode(errors="replace"))
                if refusal:
                    return
                await send(held)
            begun = True
            await send(message)

    try:
        await app(scope, receive, judging_send)
    except Exception as error:
        refusal = refusal or (None if begun else fault(str(error)))
        if not refusal:
            raise
    if refusal:
        raise refusal
