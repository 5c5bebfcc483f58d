"""The Truss in examples/ as Baseten runs it: the real Truss builds its context, and Debian's nginx with the
proxy.conf that it has generated stands before the real vLLM, started by the config's own start_command.

Only ports, paths and what a CPU needs differ. In front of all is a stand-in for Baseten's gateway, another server
in the same nginx: it asks for the key, and leads to the routes of
https://docs.baseten.co/development/model/custom-server
"""

from __future__ import annotations

import configparser
import http.client
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixtral_sky.deploy import task
from pixtral_sky.pixtral import MODEL
from pixtral_sky.rehearsal import checkpoint, engine
from pixtral_sky.rehearsal import process as rehearsal
from tests.conftest import ROOT
from tests.support.command_line import KEY, run_main

pytestmark = [pytest.mark.truss, pytest.mark.timeout(300)]

FOLDER = ROOT / "examples" / "truss"
WAY = "/environments/production"
VERSION = re.findall(r"for Truss ([\d.]+\d)", (FOLDER / "README.md").read_text())[0]
READY_SECONDS = 120.0
PICTURES = [str(ROOT / "examples" / name) for name in ("chart.png", "receipt.jpg")]
# Tokens of which a low temperature takes others than a high one, with the same seed.
BIASED = {"logit_bias": {str(2000 + n): 100 - n / 2 for n in range(6)}, "seed": 5}

GATEWAY = """
map $http_authorization $is_known { default 0; "Api-Key %(key)s" 1; }
server {
    listen 127.0.0.1:%(gateway)d;
    client_max_body_size 100m;
    proxy_buffering off;
    proxy_http_version 1.1;
    default_type application/json;
    if ($is_known = 0) { return 401 '{"error": "Invalid API key"}'; }
    location = %(way)s/predict {
        rewrite ^ /v1/models/model:predict break;
        proxy_pass http://127.0.0.1:%(proxy)d;
    }
    location %(way)s/sync/ { proxy_pass http://127.0.0.1:%(proxy)d/; }
    location / { return 404 '{"error": "Not found"}'; }
}
"""


@dataclass(frozen=True)
class Baseten:
    """``gateway`` and ``proxy`` are ports of 127.0.0.1; ``context`` is what Truss has made of the ``config``."""

    gateway: int
    proxy: int
    context: Path
    config: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway}{WAY}"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def replaced(text: str, old: str, new: str, times: int) -> str:
    assert text.count(old) == times, old
    return text.replace(old, new)


Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Run a program of Truss's own environment; it looks for no update of itself."""
    venv = engine.cache() / f"truss-{VERSION}"
    assert (venv / "complete").exists(), "It is made by: make truss"
    home = tmp_path_factory.mktemp("home")
    settings = home / ".config" / "truss" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[preferences]\ncheck_for_updates = false\n")

    def program(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "200"}
        command = [str(venv / "bin" / name), *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=check)

    return program


@pytest.fixture(scope="session")
def baseten(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Baseten]:
    folder = tmp_path_factory.mktemp("baseten")
    server, proxy, gateway = free_ports(3)
    shutil.copytree(FOLDER, folder / "truss")
    text = (FOLDER / "config.yaml").read_text()
    text = replaced(text, "8081", str(server), times=2)
    (folder / "truss" / "config.yaml").write_text(text)
    context = folder / "context"
    program("truss", "image", "build-context", str(context), str(folder / "truss"))
    log = folder / "vllm.log"
    found = Baseten(gateway, proxy, context, yaml.safe_load(text), log)
    with log.open("wb") as out:
        vllm = started_server(found, folder, out)
    nginx = started_nginx(found, folder)
    try:
        wait_until_ready(found, vllm)
        yield found
    finally:
        for process in (nginx, vllm):
            process.terminate()
        for process in (nginx, vllm):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def started_server(found: Baseten, folder: Path, out: Any) -> subprocess.Popen[bytes]:
    """The command that Truss gives to supervisord, which splits it as a shell does and uses none."""
    venv = engine.ensure(task.load().vllm_version)
    supervisord = configparser.ConfigParser()
    supervisord.read(found.context / "supervisord.conf")
    command = supervisord["program:model-server"]["command"]
    command = replaced(command, "/models/pixtral", str(checkpoint.tiny(venv)), times=1)
    command = replaced(command, "/tmp/pixtral", str(folder / "model"), times=4)
    command = replaced(command, "/app/data", str(found.context / "data"), times=1)
    *bash, script = shlex.split(command)
    assert bash == ["bash", "-c"]
    return subprocess.Popen(
        [*bash, f"{script} --host 127.0.0.1 {rehearsal.CPU_ARGS}"],
        env={
            **found.config["environment_variables"],
            "IMAGE_URLS": "public,127.0.0.1",  # where the pictures of these tests are
            "PATH": f"{venv}/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
            "HF_HUB_OFFLINE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def started_nginx(found: Baseten, folder: Path) -> subprocess.Popen[bytes]:
    proxy = (found.context / "proxy.conf").read_text()
    proxy = replaced(proxy, "listen 8080;", f"listen 127.0.0.1:{found.proxy};", times=1)
    proxy = replaced(proxy, "/dev/shm/nginx_", f"{folder}/", times=5)
    values = {"key": KEY, "gateway": found.gateway, "proxy": found.proxy, "way": WAY}
    (folder / "nginx.conf").write_text(
        f"user root; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\n{proxy}\n{GATEWAY % values}\n}}\n"
    )
    command = ["/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def wait_until_ready(found: Baseten, vllm: subprocess.Popen[bytes]) -> None:
    """As Baseten asks: its probe of readiness, by the proxy."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if request(found.proxy, "GET", "/v1/models/model")[0] == 200:
                return
        except OSError:
            pass
        assert vllm.poll() is None, found.log.read_text()[-3000:]
        time.sleep(0.3)
    raise AssertionError(found.log.read_text()[-3000:])


def request(port: int, method: str, path: str, body: object = None, key: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": key} if key else {})
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def predict(found: Baseten, content: object = "Say something.", **fields: Any) -> dict[str, Any]:
    """The answer of the route, as Baseten's gateway reaches it."""
    body = {"messages": [{"role": "user", "content": content}], **fields}
    status, answer = request(found.proxy, "POST", "/v1/models/model:predict", body)
    assert status == 200, answer
    return dict(json.loads(answer))


def picture(number: int = 0, url: str = "") -> dict[str, Any]:
    from pixtral_sky.pictures.prepare import prepare

    url = url or prepare(Path(PICTURES[number]).read_bytes(), PICTURES[number]).data_url()
    return {"type": "image_url", "image_url": {"url": url}}


# Truss -----------------------------------------------------------------------------------------------------


CHECK = """
import pathlib, sys
from truss.base.truss_config import TrussConfig
config = TrussConfig.from_yaml(pathlib.Path(sys.argv[1]))
config.validate_forbid_extra()
print(config.resources.accelerator.accelerator.value, config.resources.accelerator.count)
"""


def test_truss_takes_it(program: Program) -> None:
    """As `truss push` does: with a look for keys that it does not know."""
    result = program("python", "-W", "error", "-c", CHECK, str(FOLDER / "config.yaml"))
    assert result.stdout == "A100 1\n"
    assert result.stderr == ""


def test_truss_refuses_weights_beside_a_model_cache(program: Program, tmp_path: Path) -> None:
    cache = "model_cache:\n  - {repo_id: a/b, revision: main, use_volume: true, volume_folder: x}\n"
    (tmp_path / "config.yaml").write_text((FOLDER / "config.yaml").read_text() + cache)
    result = program("python", "-c", CHECK, str(tmp_path / "config.yaml"), check=False)
    assert "only one of `model_cache` and `weights`" in result.stderr


def test_the_image(baseten: Baseten) -> None:
    dockerfile = (baseten.context / "Dockerfile").read_text()
    assert f"FROM vllm/vllm-openai:v{task.load().vllm_version} AS" in dockerfile


# Its routes ------------------------------------------------------------------------------------------------


def test_baseten_s_probes(baseten: Baseten) -> None:
    assert request(baseten.proxy, "GET", "/v1/models/model") == (200, b"")  # is it ready?
    assert request(baseten.proxy, "GET", "/") == (200, b"")  # is it alive?


def test_words(baseten: Baseten) -> None:
    document = predict(baseten, max_tokens=5, ignore_eos=True)
    assert document["model"] == "pixtral"
    assert document["usage"]["completion_tokens"] == 5
    assert document["choices"][0]["message"]["content"]


def test_a_picture(baseten: Baseten) -> None:
    document = predict(baseten, [{"type": "text", "text": "What is this?"}, picture()], max_tokens=5)
    assert document["usage"]["prompt_tokens"] > 2795  # of the chart alone


@pytest.mark.parametrize("model", ["pixtral", MODEL])
def test_both_names(baseten: Baseten, model: str) -> None:
    assert predict(baseten, model=model, max_tokens=1)["usage"]["completion_tokens"] == 1


def test_four_pictures_and_no_more(baseten: Baseten) -> None:
    assert predict(baseten, [picture(1)] * 4, max_tokens=1)["usage"]["prompt_tokens"] > 4 * 2688
    body = {"messages": [{"role": "user", "content": [picture(1)] * 5}], "max_tokens": 1}
    status, answer = request(baseten.proxy, "POST", "/v1/models/model:predict", body)
    assert status == 400
    assert b"At most 4 image(s)" in answer


def test_it_streams_through_the_proxy(baseten: Baseten) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", baseten.proxy, timeout=60)
    body = {
        "messages": [{"role": "user", "content": "Go on."}],
        "stream": True,
        "max_tokens": 200,
        "ignore_eos": True,
    }
    connection.request(
        "POST", "/v1/models/model:predict", json.dumps(body), {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    response = connection.getresponse()
    arrivals = []
    while line := response.readline():
        if line.startswith(b"data: {"):
            arrivals.append(time.monotonic() - began)
    connection.close()
    assert len(arrivals) > 50
    assert arrivals[0] < arrivals[-1] / 2, "it was not held back and sent at once"


def test_512_tokens_unless_it_says_otherwise(baseten: Baseten) -> None:
    for fields, tokens in (({}, 512), ({"max_tokens": 520}, 520)):
        document = predict(baseten, ignore_eos=True, **fields)
        assert document["usage"]["completion_tokens"] == tokens
        assert document["choices"][0]["finish_reason"] == "length"


def test_temperature_0_7_unless_it_says_otherwise(baseten: Baseten) -> None:
    def answer(**fields: Any) -> str:
        document = predict(baseten, max_tokens=40, ignore_eos=True, **BIASED, **fields)
        return str(document["choices"][0]["message"]["content"])

    assert answer() == answer(temperature=0.7)
    assert answer() != answer(temperature=1.0)


def test_the_gateway_s_routes_and_no_others(baseten: Baseten) -> None:
    body = {"model": "pixtral", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    key = f"Api-Key {KEY}"
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert request(baseten.gateway, "POST", f"{WAY}/sync{path}", body, key)[0] == 200
        assert request(baseten.gateway, "POST", f"{WAY}/sync{path}", body)[0] == 401
    for path in ("/invocations", "/sleep", "/collective_rpc", "/pause", "/reset_prefix_cache"):
        assert request(baseten.gateway, "POST", f"{WAY}/sync{path}", body, key)[0] == 404


# The README ------------------------------------------------------------------------------------------------


class Album(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = Path(PICTURES[1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def album() -> Iterator[str]:
    """A server of pictures, on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Album)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def in_bash(script: str, baseten: Baseten, key: str = KEY) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": f"{ROOT}/.venv/bin:/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "PIXTRAL_SKY_HOME": os.environ["PIXTRAL_SKY_HOME"],
        "PIXTRAL_ENDPOINT": f"{baseten.url}/predict",
        "PIXTRAL_API_KEY": key,
    }
    return subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=60)


def pieces(stream: str) -> list[str]:
    """The texts of a stream, which is whole."""
    events = re.findall(r"^data: (.*)$", stream, re.MULTILINE)
    assert events, stream
    assert events[-1] == "[DONE]"
    return [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]


def test_the_requests_of_the_readme(baseten: Baseten, album: str) -> None:
    """As printed. Only the picture is on this machine: its URL has another host, and the same path."""
    blocks = re.findall(
        r"^```bash\n(curl .*?)^```$", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    words, one_picture = blocks
    for block in (words, replaced(one_picture, "https://picsum.photos", album, times=1)):
        result = in_bash(block, baseten)
        assert result.returncode == 0, result.stderr
        assert 1 < len(pieces(result.stdout)) <= 66


def test_the_original_guide_s_requests(baseten: Baseten, album: str) -> None:
    text = {"type": "text", "text": "What type of animal is this? Answer in French only"}
    for content in ("What is the capital of France?", [text, picture(url=f"{album}/hedgehog.jpg")]):
        for body in (
            {"stream": True, "max_tokens": 64, "temperature": 0.2},
            {"stream": False, "max_tokens": 64, "temperature": 0.5},
        ):
            body |= {"model": "pixtral", "messages": [{"role": "user", "content": content}]}
            key = f"Api-Key {KEY}"
            status, answer = request(baseten.gateway, "POST", f"{WAY}/predict", body, key)
            assert status == 200, answer
            if body["stream"]:
                assert len(pieces(answer.decode())) > 1
            else:
                assert json.loads(answer)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "metadata.internal"])
def test_a_picture_comes_from_a_public_address(baseten: Baseten, host: str) -> None:
    body = {"messages": [{"role": "user", "content": [picture(url=f"http://{host}/latest")]}]}
    status, answer = request(baseten.gateway, "POST", f"{WAY}/predict", body, f"Api-Key {KEY}")
    assert status == 400
    assert f"'{host}' cannot be reached at a public address" in json.loads(answer)["error"]["message"]


# Our client ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/predict", "/sync", "/sync/v1/chat/completions"])
def test_ask_about_two_pictures(
    baseten: Baseten, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], route: str
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    arguments = ["ask", "What changed?", *PICTURES, "--max-tokens", "20", "--usage"]
    result = run_main(monkeypatch, capsys, *arguments, "--endpoint", f"{baseten.url}{route}")
    assert result.code == 0, result.err
    assert result.out.strip()
    tokens = re.search(r"^([\d,]+) tokens in the prompt", result.err, re.MULTILINE)
    assert tokens
    assert int(tokens[1].replace(",", "")) > 2795 + 2688
    whole = run_main(monkeypatch, capsys, *arguments, "--json", "--endpoint", f"{baseten.url}{route}")
    assert json.loads(whole.out)["usage"]["completion_tokens"] <= 20


def test_a_wrong_key(
    baseten: Baseten, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", "another")
    monkeypatch.setenv("PIXTRAL_ENDPOINT", f"{baseten.url}/predict")
    result = run_main(monkeypatch, capsys, "ask", "x")
    assert result.code == 1
    assert "does not take this key (401)." in result.error


def test_the_printed_request_works_as_it_stands(baseten: Baseten) -> None:
    printed = in_bash("pixtral-sky endpoint --for curl", baseten)
    assert printed.returncode == 0, printed.stderr
    assert KEY not in printed.stdout
    result = in_bash(printed.stdout, baseten)
    assert result.returncode == 0, result.stderr
    assert len(pieces(result.stdout)) > 1
