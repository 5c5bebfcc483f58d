"""Let /v1/responses take parts of messages: vLLM hands them to mistral-common, which knows a chat's only."""

import contextlib


def join_turns(body):
    """Make one part of each assistant turn, as vLLM reads only the first; return whether there was any."""
    items = body.get("input")
    turns = [item for item in items if is_turn(item)] if isinstance(items, list) else []
    for item in turns:
        parts = [part if isinstance(part, dict) else {} for part in item["content"]]
        texts = [text for part in parts if isinstance(text := part.get("text", part.get("refusal")), str)]
        if len(texts) == len(parts):
            item["type"], item["content"] = "message", [{"type": "output_text", "text": "".join(texts)}]
    return bool(turns)


def is_turn(item):
    return (
        isinstance(item, dict) and item.get("role") == "assistant" and isinstance(item.get("content"), list)
    )


def mend():
    """Let mistral-common take parts of Responses. Without mistral-common, or in another shape: nothing."""
    with contextlib.suppress(ImportError, AttributeError):
        from mistral_common.protocol.instruct import messages

        convert = messages._convert_openai_content_chunks
        messages._convert_openai_content_chunks = lambda part: convert(of_chat(part))


def of_chat(part):
    """A part of a message of Responses as one of chat completions; any other as it is."""
    if part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    if part.get("type") == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return part
