"""The file formats of OpenAI's Batch API: https://platform.openai.com/docs/api-reference/batch

A file of requests is answered in the format of OpenAI's output file, so that it can move between services.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

from pixtral_sky import pixtral
from pixtral_sky.pictures.names import is_data_url, is_url
from pixtral_sky.pictures.picture import FORMATS, Picture
from pixtral_sky.pictures.source import Source, decode
from pixtral_sky.text import is_unicode

URL = "/v1/chat/completions"
# Fields that the client sets: the served model, and streaming.
SENDERS = ("model", "stream", "stream_options")
# Two names of one limit; some clients write it as a string.
LIMITS = ("max_tokens", "max_completion_tokens")


def is_request(line: dict[str, Any]) -> bool:
    """Whether a line is in this format, valid or not."""
    return "custom_id" in line


def problem(line: dict[str, Any]) -> str:
    """What is wrong with the request of a line, or ""."""
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        return '"custom_id" has to be a string'
    if not is_unicode(custom_id):
        return '"custom_id" is not valid Unicode'
    if line.get("method") != "POST":
        return '"method" has to be "POST"'
    if line.get("url") != URL:
        return f'"url" has to be "{URL}"'
    if not isinstance(body, dict):
        return '"body" has to be an object'
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return '"body.messages" has to be a list of messages'
    for name in LIMITS:
        if body.get(name) is not None and _whole(body[name]) < 1:
            return f'"body.{name}" has to be a whole number from 1'
    return ""


def _whole(value: object) -> int:
    """The number that ``value`` says, 0 when it says none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip(), re.ASCII):
        return int(value)
    return value if type(value) is int else 0


def pictures(body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The parts of a body, which may have any shape, with a picture; and its URL, in an object or alone."""
    for message in body["messages"]:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            picture = part.get("image_url") if isinstance(part, dict) else None
            url = picture.get("url") if isinstance(picture, dict) else picture
            if isinstance(url, str):
                yield part, url.strip()


def prepared(body: dict[str, Any], seen: Callable[[Picture], None] = lambda _: None) -> dict[str, Any]:
    """The body as it is sent: without SENDERS, and with pictures that the server can read.

    A picture that may not go up as it is, such as a turned or a large one, is prepared as by ``ask``. An
    http(s) URL becomes a data: URL with its content, as not every server fetches it; a URL alone, Mistral's
    form, becomes OpenAI's object. ``seen`` gets each of them.

    Raises PictureError for a picture that cannot be downloaded or read.
    """
    body = copy.deepcopy({name: value for name, value in body.items() if name not in SENDERS})
    for name in LIMITS:
        if isinstance(body.get(name), str):
            body[name] = _whole(body[name])
    for part, url in pictures(body):
        if isinstance(part["image_url"], str):
            part |= {"type": "image_url", "image_url": {"url": url}}
        if is_url(url) or is_data_url(url):
            picture = Source(url).read()
            seen(picture)
            part["image_url"]["url"] = picture.data_url()
    return body


def picture_tokens(url: str) -> int:
    """Prompt tokens of the picture in a data: URL; 0 when they cannot be known."""
    size = _size(url)
    return pixtral.image_tokens(*size) if size else 0


def _size(url: str) -> tuple[int, int] | None:
    """Width and height, in pixels, of the picture in a data: URL; None when they cannot be known."""
    if not is_data_url(url):
        return None
    from PIL import Image

    try:
        with Image.open(BytesIO(decode(url)), formats=FORMATS) as image:
            size: tuple[int, int] = image.size
            return size
    except Exception:  # decoders raise anything on damaged input
        return None


def output(custom_id: str, document: dict[str, Any]) -> dict[str, Any]:
    """The output line of a request that was answered with the ``chat.completion`` ``document``."""
    response = {"status_code": 200, "request_id": document.get("id") or "", "body": document}
    return {"id": _id(custom_id), "custom_id": custom_id, "response": response, "error": None}


def error(custom_id: str, kind: str, message: str) -> dict[str, Any]:
    """The line of the errors file for a request that got no answer: the error's ``code`` is its kind."""
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()
    return {
        "id": _id(custom_id),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


def _id(custom_id: str) -> str:
    return f"batch_req_{hashlib.blake2b(custom_id.encode(), digest_size=12).hexdigest()}"
