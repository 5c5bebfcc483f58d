"""The file formats of OpenAI's Batch API: https://platform.openai.com/docs/api-reference/batch

A file of requests is answered here in the format of their output file, so that it can move between services
as it is.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from pixtral_sky import pixtral
from pixtral_sky.pictures.picture import FORMATS
from pixtral_sky.pictures.source import Source, is_data_url, is_url
from pixtral_sky.text import is_unicode

URL = "/v1/chat/completions"
# Fields that the sender decides: which model is served, and that answers are streamed.
SENDERS = ("model", "stream", "stream_options")


def is_request(line: dict[str, Any]) -> bool:
    """Whether an object is of this format, be it right or wrong."""
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
    return ""


def _pictures(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What holds the ``url`` of each picture of a body; nothing is taken for granted of its form."""
    for message in body["messages"]:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            picture = part.get("image_url") if isinstance(part, dict) else None
            if isinstance(picture, dict) and isinstance(picture.get("url"), str):
                yield picture


def picture_urls(body: dict[str, Any]) -> Iterator[str]:
    """Where the pictures of a body are."""
    return (picture["url"] for picture in _pictures(body))


def prepared(body: dict[str, Any]) -> dict[str, Any]:
    """The body as it is sent: as it is given, but for SENDERS, and for pictures that cannot stay as they are.

    An http(s) URL becomes its content, as the server fetches none. A data: URL of more than 1024 pixels a
    side is shrunk as the server would shrink it, and one that cannot be read is an error here. Raises
    PictureError.
    """
    body = copy.deepcopy({name: value for name, value in body.items() if name not in SENDERS})
    for picture in _pictures(body):
        picture["url"] = _sent(picture["url"])
    return body


def _sent(url: str) -> str:
    if is_data_url(url):
        size = _size(url)
        if size and max(size) <= pixtral.BOX:
            return url
    elif not is_url(url):
        return url
    return Source(url).read().data_url()


def picture_tokens(url: str) -> int:
    """Prompt tokens of the picture in a data: URL; 0 when they cannot be known."""
    size = _size(url)
    return pixtral.image_tokens(*size) if size else 0


def _size(url: str) -> tuple[int, int] | None:
    """Width and height, in pixels, of the picture in a data: URL."""
    head, _, content = url.partition(",")
    if not is_data_url(head):
        return None
    from PIL import Image

    try:
        data = base64.b64decode(content) if head.lower().endswith(";base64") else unquote_to_bytes(content)
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            size: tuple[int, int] = image.size
            return size
    except Exception:  # decoders that are fed with anything raise anything
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
