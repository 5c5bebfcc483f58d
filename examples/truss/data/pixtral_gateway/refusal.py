"""Answers of the gateway's own, and a request that it refuses."""

import json


class Refusal(Exception):
    """The answer is an error in OpenAI's format. ``message`` says what is wrong and what to do."""

    def __init__(self, status, code, message, headers=()):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers

    async def answer(self, send):
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        await send_json(send, self.status, {"error": error}, self.headers)


async def send_json(send, status, value, headers=()):
    body = json.dumps(value).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
