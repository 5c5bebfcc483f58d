"""A running rehearsal, asked in plain HTTP; its processes; a picture to ask about."""

from __future__ import annotations

import http.client
import io
import json

import psutil
from PIL import Image

from pixtral_sky.deploy.store import Rehearsal


def family(deployment: Rehearsal) -> list[psutil.Process]:
    leader = psutil.Process(deployment.pid)
    return [leader, *leader.children(recursive=True)]


def request(deployment: Rehearsal, method: str, path: str, body: object = None, key: str | None = None):
    """Status and body of one request, sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", int(deployment.url.rpartition(":")[2]), timeout=60)
    headers = {"Content-Type": "application/json"}
    if key is None:
        key = deployment.key
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def drawn(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, kind)
    return file.getvalue()
