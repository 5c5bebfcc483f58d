"""examples/certificate.sh: clients that are given its authority accept a real server with it, and others do not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.errors import Unreachable
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "certificate.sh"
NAME = "pixtral.internal"  # as in examples/tls.yaml
MODELS = b'{"object": "list", "data": [{"id": "pixtral", "object": "model", "max_model_len": 32768}]}'


def make(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **env}
    )


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": MODELS})


@contextlib.contextmanager
def balancer(folder: Path) -> Iterator[int]:
    """uvicorn over HTTPS on loopback, as SkyServe starts its balancer: with a key and a certificate, no more."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, http="h11", ws="none", lifespan="off", log_level="critical",
            ssl_keyfile=str(folder / "key.pem"), ssl_certfile=str(folder / "cert.pem"),
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with a certificate for a name, and the port of a server that has it."""
    folder = tmp_path_factory.mktemp("name") / "tls"
    assert make(NAME, folder).returncode == 0
    with balancer(folder) as port:
        yield folder, port


@pytest.fixture(scope="module")
def addressed(tmp_path_factory):
    """The same for an address."""
    folder = tmp_path_factory.mktemp("address") / "tls"
    assert make("127.0.0.1", folder).returncode == 0
    with balancer(folder) as port:
        yield folder, port


def handshake(port: int, name: str, authority=None) -> str:
    """The subject that the server shows, after all of OpenSSL's checks; strict as Python 3.13's are."""
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        return dict(pair[0] for pair in tls.getpeercert()["subject"])["commonName"]


def test_it_is_accepted_with_its_authority_only(named):
    folder, port = named
    assert handshake(port, NAME, folder / "ca.pem") == "pixtral-sky"
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        handshake(port, NAME)
    for other in ("localhost", "127.0.0.1", f"other.{NAME}"):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"ostname mismatch|IP address mismatch"):
            handshake(port, other, folder / "ca.pem")


def test_an_address(addressed, named):
    folder, port = addressed
    assert handshake(port, "127.0.0.1", folder / "ca.pem") == "pixtral-sky"
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(port, "127.0.0.1", named[0] / "ca.pem")  # another one's authority


def test_the_curl_line_of_the_example(named):
    """To the letter, but for what `sky serve status` would say."""
    folder, port = named
    lines = re.findall(r"^#   (.*)$", (ROOT / "examples/tls.yaml").read_text().partition("\nname:")[0], re.M)
    assert lines[0].split("#")[0].split() == ["bash", "examples/certificate.sh", NAME]
    line = "\n".join(lines[lines.index(next(each for each in lines if each.startswith("curl"))) :][:2])
    assert "~/.pixtral-sky/tls/ca.pem" in line

    def run(text: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"],
            "endpoint": f"https://127.0.0.1:{port}",
            "PIXTRAL_API_KEY": "sesame",
        }
        return subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, env={**env, "no_proxy": "*"}
        )

    line = line.replace("curl", "curl -sS").replace("~/.pixtral-sky/tls", str(folder))
    assert run(line).stdout.encode() == MODELS
    refused = run(line.replace(f"--cacert {folder}/ca.pem", ""))
    assert refused.returncode == 60  # peer failed verification
    assert refused.stdout == ""


def test_our_own_client(addressed, monkeypatch):
    """As the example says: with SSL_CERT_FILE in its environment, and not by what `requests` reads."""
    folder, port = addressed
    endpoint = Endpoint(f"https://127.0.0.1:{port}", "sesame")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))
    with Client(endpoint, budget=0) as client, pytest.raises(Unreachable, match=r"(?i)certificate"):
        client.models()
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    with Client(endpoint, budget=0) as client:
        assert client.models()
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://127.0.0.1:{port}/v1/models")  # nothing but HTTPS


def test_the_key_is_for_nobody_else(named):
    folder, _ = named
    assert sorted(each.name for each in folder.iterdir()) == [
        "ca.pem",
        "cert.pem",
        "key.pem",
    ]  # no key of the authority
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    text = subprocess.run(
        ["openssl", "x509", "-in", folder / "ca.pem", "-noout", "-text"], capture_output=True, text=True
    ).stdout
    assert "CA:TRUE, pathlen:0" in text


def test_skypilots_controller_starts_with_it(named, tmp_path):
    """The arguments that SkyServe gives uvicorn for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sky.serve.serve_utils import TLSCredential
        target = tmp_path / ".pixtral-sky" / "tls"
        shutil.copytree(named[0], target)
        given = TLSCredential(
            "~/.pixtral-sky/tls/key.pem", "~/.pixtral-sky/tls/cert.pem"
        ).dump_uvicorn_kwargs()
    assert given == {"ssl_keyfile": str(target / "key.pem"), "ssl_certfile": str(target / "cert.pem")}


def test_a_second_time_it_touches_nothing(named):
    folder, _ = named
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    result = make(NAME, folder)
    assert result.returncode == 1
    assert "is there already" in result.stderr
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_where_it_goes_without_a_folder(tmp_path):
    result = make("::1", HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ".pixtral-sky/tls/key.pem").exists()


@pytest.mark.parametrize("host", ["", "a b", "a\nb", "$(id)", "x, DNS:y", "a/b", "999.1.1.1"])
def test_what_is_no_host(host, tmp_path):
    result = make(host, tmp_path / "tls")
    assert result.returncode == 1
    assert result.stderr.startswith("certificate: ")
    assert not (tmp_path / "tls" / "key.pem").exists()


def test_without_openssl(tmp_path):
    result = subprocess.run(
        [shutil.which("bash"), SCRIPT, NAME, tmp_path / "tls"],
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere"},
    )
    assert result.returncode == 1
    assert "there is no openssl here" in result.stderr
