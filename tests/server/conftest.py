"""The gateway on each of uvicorn's two protocols."""

from __future__ import annotations

import pytest

from tests.support.gateway import KEY, Server


@pytest.fixture(scope="module", params=["h11", "httptools"])
def one_server(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_API_KEY", KEY)
        patch.setenv("MAX_BODY_MIB", "1")
        server = Server(request.param)
    yield server
    server.close()
