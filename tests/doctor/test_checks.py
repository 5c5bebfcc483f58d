"""The doctor: every check well, every check ill, and no secret in what it says."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
import yaml

from pixtral_sky import __version__
from pixtral_sky.deploy import gpus, skypilot, store, task, tunnel
from pixtral_sky.doctor import checks as doctor
from pixtral_sky.doctor import endpoint
from pixtral_sky.errors import SkyError, Unreachable, UsageError
from pixtral_sky.extras import install_skypilot
from pixtral_sky.pictures import prepare
from pixtral_sky.pixtral import MODEL
from pixtral_sky.server.gateway import Gateway
from tests.deploy.test_huggingface import GATED, OPENS, VARIABLES, FakeHub
from tests.support import deployments
from tests.support.command_line import KEY, Result, run_main
from tests.support.fake_endpoint import (
    Behaviour,
    Exchange,
    FakeEndpoint,
    Request,
    page,
    says,
    status,
    vllm_error,
)

CHART_TOKENS = 2795
PREPARED = functools.cache(prepare.prepare)  # its picture is the same each time
ANSWERS = says("A chart.", usage={"prompt_tokens": 2803, "completion_tokens": 8, "total_tokens": 2811})
SUBJECTS = [
    *("pixtral-sky", "files", "task file", "SkyPilot", "SkyPilot server", "SkyPilot infra", "SkyPilot task"),
    *("GPUs", "Hugging Face", "ssh", "key", "endpoint", "models", "gateway", "picture"),
]


class Served(FakeEndpoint):
    """A fake endpoint that is shut as the gateway is.

    ``instead``: what it does after all, by who asks and what: "nobody POST /invocations". Who asks is a
    "friend" with the key, "nobody" without one, a "stranger" with a wrong one; where there is no key it is
    "nobody", or a "page" when the request is for another host.
    """

    def __init__(
        self, *script: Behaviour, instead: dict[str, Behaviour] | None = None, **fields: Any
    ) -> None:
        super().__init__(script or (ANSWERS,), **fields)
        self.instead = instead or {}

    def _next(self, request: Request) -> Behaviour:
        given, route = request.headers.get("authorization"), f"{request.method} {request.path}"
        who = "nobody" if not given else "friend" if given == f"Bearer {self.key}" else "stranger"
        if not request.headers["host"].startswith("127.0.0.1:"):
            who = "page"
        if behave := self.instead.get(f"{who} {route}"):
            return behave
        if route == "GET /health":
            return status(200)
        if route not in ("GET /v1/models", "POST /v1/chat/completions"):
            return status(404)
        return vllm_error(401, "No.") if who == "page" else super()._next(request)


class Examined(Result):
    """A run of the doctor. By subject, ``marks`` has the first word of its line, ``texts`` the rest."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.code, result.out, result.err)
        lines = [re.fullmatch(r"(ok|FAIL|\?|-) +(.{15}) (.+)", line) for line in result.out.splitlines()]
        assert all(lines), result.out
        assert result.err == ""
        self.marks = {line[2].rstrip(): line[1] for line in lines if line}
        self.texts = {line[2].rstrip(): line[3] for line in lines if line}

    @property
    def not_ok(self) -> dict[str, str]:
        return {subject: mark for subject, mark in self.marks.items() if mark != "ok"}


Examine = Callable[..., Examined]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which all is well: SkyPilot, ssh and a token. Returns the directory of its programs."""
    for name in (*VARIABLES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(skypilot, "installed", lambda: "0.14.1")
    monkeypatch.setattr(skypilot, "server", lambda: "0.14.1, on this machine")
    monkeypatch.setattr(skypilot, "enabled", lambda: ["aws", "slurm/e2e"])
    monkeypatch.setattr(skypilot, "check_file", lambda path: None)
    monkeypatch.setattr(prepare, "prepare", PREPARED)
    programs = tmp_path / "bin"
    programs.mkdir()
    ssh = programs / "ssh"
    ssh.write_text("#!/bin/sh\necho 'OpenSSH_9.9p1 Debian-3, OpenSSL 3.5.0' >&2\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("HF_TOKEN", OPENS)
    return programs


@pytest.fixture(autouse=True)
def fake_hub(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Examine:
    def examine(*arguments: object) -> Examined:
        return Examined(run_main(monkeypatch, capsys, "doctor", *map(str, arguments)))

    return examine


@pytest.fixture
def served() -> Iterator[Callable[..., Served]]:
    """Starts an endpoint that is remembered as ``name``: a rehearsal, this very process."""
    with contextlib.ExitStack() as stack:

        def serve(*script: Behaviour, name: str = "pixtral", key: str = KEY, **fields: Any) -> Served:
            fake = stack.enter_context(Served(*script, key=key, **fields))
            remember(fake.url, name, key)
            return fake

        yield serve


def remember(url: str, name: str = "pixtral", key: str = KEY, pid_born: float | None = None) -> None:
    born = store.born(psutil.Process()) if pid_born is None else pid_born
    deployments.rehearsal(name, url=url, key=key, pid=os.getpid(), pid_born=born, log="/the/log")


# All is well -----------------------------------------------------------------------------------------------


def test_all_is_well(
    examine: Examine,
    served: Callable[..., Served],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    fake = served()
    config = tmp_path / "pixtral-sky" / "pixtral-sky.toml"
    config.parent.mkdir()
    config.write_text("idle = 30")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    result = examine()
    assert result.code == 0
    assert list(result.marks) == SUBJECTS
    assert not result.not_ok
    texts = result.texts
    assert re.fullmatch(rf"{__version__}, on Python 3\.\d+\.\d+\S*", texts["pixtral-sky"])
    assert texts["task file"] == f"{task.shipped('pixtral.yaml')}, with vLLM {task.load().vllm_version}"
    assert texts["files"].startswith(f"state in {home} (1 deployment), cache in ")
    assert texts["files"].endswith(f" config: {config}")
    assert texts["SkyPilot"] == "0.14.1"
    assert texts["SkyPilot server"] == "0.14.1, on this machine"
    assert texts["SkyPilot infra"] == "aws, slurm/e2e"
    assert texts["GPUs"].endswith("A100-80GB:1, H100:1: each holds the model in bf16")
    assert texts["ssh"] == "OpenSSH_9.9p1 Debian-3"
    assert texts["Hugging Face"] == f"the token opens {MODEL}"
    assert texts["key"] == "the one of 'pixtral' is remembered"
    assert re.fullmatch(rf"{fake.url} answers after \d\.\d\d s", texts["endpoint"])
    assert texts["models"] == "the key opens pixtral, for 32,768 tokens"
    assert texts["gateway"] == "shut to all without the key"
    assert re.fullmatch(
        r"an answer about chart\.png \(2,795 tokens\): 2,803 tokens in the prompt, 8 in the answer, \d\.\d s",
        texts["picture"],
    )
    question = fake.asked[-1].json
    assert question["max_tokens"] == endpoint.ANSWER_TOKENS
    assert [part["type"] for part in question["messages"][0]["content"]] == ["text", "image_url"]


def test_nothing_is_deployed_yet(examine: Examine) -> None:
    result = examine()
    assert result.code == 0
    assert result.not_ok == {"key": "-", "endpoint": "-"}
    assert list(result.marks) == SUBJECTS[: SUBJECTS.index("endpoint") + 1]
    assert result.texts["key"] == "There is none yet: one is made at launch."
    assert result.texts["endpoint"] == "Nothing is deployed as 'pixtral'. Run: pixtral-sky launch"
    file = task.shipped("service.yaml")
    assert examine("--file", file).texts["endpoint"].endswith(f" Run: pixtral-sky serve up --file {file}")


def test_each_line_is_there_as_soon_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(skypilot, "installed", lambda: asked.append("SkyPilot") or "0.14.1")
    checks = doctor.examine()
    assert next(checks).subject == "pixtral-sky"
    assert next(checks).subject == "files"
    assert next(checks).subject == "task file"
    assert not asked
    assert next(checks).subject == "SkyPilot"


def test_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Callable[..., Served]
) -> None:
    served()
    monkeypatch.setattr(skypilot, "enabled", list)
    result = run_main(monkeypatch, capsys, "doctor", "--json")
    checks = json.loads(result.out)
    assert result.code == 1
    assert [check["subject"] for check in checks] == SUBJECTS
    assert {check["state"] for check in checks} == {"ok", "failed"}
    assert checks[SUBJECTS.index("SkyPilot infra")] == {
        "state": "failed",
        "subject": "SkyPilot infra",
        "text": "No cloud, Kubernetes or Slurm is enabled.",
        "hint": "Run: sky check",
    }


def test_a_name_that_is_none_is_an_error_of_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_main(monkeypatch, capsys, "doctor", "../x")
    assert result.code == 2
    assert "is no name for a deployment" in result.error


# The real gateway ---------------------------------------------------------------------------------------


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """What is behind the gateway: it answers everything, and anyone."""
    while (await receive()).get("more_body"):
        pass
    choice = {"index": 0, "delta": {"role": "assistant", "content": "A chart."}, "finish_reason": "stop"}
    chunk = {"choices": [choice], "usage": {"prompt_tokens": 2803, "completion_tokens": 3}}
    body, kind = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), b"text/event-stream"
    if scope["path"] == "/v1/models":
        models = [{"id": "pixtral", "max_model_len": 32768}, {"id": MODEL, "max_model_len": 32768}]
        body, kind = json.dumps({"data": models}).encode(), b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def uvicorn_with(app: Any) -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http="h11", ws="none", lifespan="off", log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_real_gateway_is_shut(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    with uvicorn_with(Gateway(inner)) as url:
        remember(url)
        result = examine()
    assert not result.not_ok
    assert result.texts["models"] == f"the key opens pixtral, {MODEL}, for 32,768 tokens"
    assert result.texts["gateway"] == "shut to all without the key"


def test_the_real_gateway_without_a_key(examine: Examine) -> None:
    with uvicorn_with(Gateway(inner)) as url:
        remember(url, key="")
        result = examine()
    assert result.not_ok == {"key": "-"}
    assert result.texts["key"] == "None is remembered for 'pixtral'."
    assert result.texts["models"].startswith("without a key: pixtral")
    assert "closed only by listening on 127.0.0.1" in result.texts["gateway"]


@pytest.mark.parametrize("key", [KEY, ""])
def test_without_the_gateway_it_is_open(examine: Examine, key: str) -> None:
    with uvicorn_with(inner) as url:
        remember(url, key=key)
        result = examine()
    assert result.code == 1
    assert result.marks["gateway"] == "FAIL"
    assert ("anyone can use it" if key else "a web page in a browser here can use it") in result.texts[
        "gateway"
    ]


# The task file and SkyPilot --------------------------------------------------------------------------------


def test_a_task_file_of_ones_own(
    examine: Examine, tmp_path: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    monkeypatch.setattr(skypilot, "check_file", checked.append)
    file = tmp_path / "mine.yaml"
    file.write_text("setup: pip install vllm==0.1.2\nrun: vllm serve\nenvs: {MODEL: /models/pixtral}\n")
    result = examine("--file", file)
    assert result.code == 0
    assert result.texts["task file"] == f"{file}, with vLLM 0.1.2"
    assert result.texts["Hugging Face"] == "/models/pixtral is a directory on the machine: no token is needed"
    assert not fake_hub.seen
    assert checked == [file]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("run: [", "is not YAML"),
        ("setup: hello\n", "is no SkyPilot task"),
        ("run: vllm serve\n", "pins no vLLM in its setup. It wants a line with: vllm==VERSION"),
    ],
)
def test_a_bad_task_file(examine: Examine, tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    result = examine("-f", file)
    assert result.code == 1
    assert why in result.texts["task file"]
    assert result.not_ok == {
        "task file": "FAIL",
        "SkyPilot task": "?",
        "GPUs": "?",
        "Hugging Face": "?",
        "key": "-",
        "endpoint": "-",
    }
    assert result.texts["Hugging Face"] == "not checked: 'task file' comes first."


def test_a_task_file_without_a_model(examine: Examine, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("setup: pip install vllm==0.1.2\nrun: vllm serve\n")
    assert "names no model. It wants an env: MODEL" in examine("-f", file).texts["Hugging Face"]


def test_no_skypilot(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skypilot, "installed", lambda: "")
    result = examine()
    assert result.code == 1
    assert result.texts["SkyPilot"] == (f"It is not installed; a launch needs it. Run: {install_skypilot()}")
    assert {subject: mark for subject, mark in result.not_ok.items() if "Sky" in subject} == {
        "SkyPilot": "FAIL",
        "SkyPilot server": "?",
        "SkyPilot infra": "?",
        "SkyPilot task": "?",
    }
    assert result.texts["SkyPilot server"] == "not checked: 'SkyPilot' comes first."


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("function", "answer", "subject", "says", "not_ok"),
    [
        ("installed", lambda: "0.15.0", "SkyPilot", "0.15.0; 0.14.1 is what was tested", {}),
        ("enabled", list, "SkyPilot infra", "No cloud, Kubernetes or Slurm is enabled. Run: sky check", {"SkyPilot infra": "FAIL"}),
        ("check_file", fails(UsageError("No field 'resorces'.")), "SkyPilot task", "No field 'resorces'.", {"SkyPilot task": "FAIL"}),
        ("server", fails(SkyError("It does not answer.", "sky api start")), "SkyPilot server",
         "It does not answer. sky api start", {"SkyPilot server": "FAIL", "SkyPilot infra": "?"}),
    ],
)  # fmt: skip
def test_what_skypilot_says(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, function: str, answer: Callable[..., Any],
    subject: str, says: str, not_ok: dict[str, str],
) -> None:  # fmt: skip
    monkeypatch.setattr(skypilot, function, answer)
    result = examine()
    assert (result.code, result.texts[subject]) == (bool(not_ok), says)
    assert result.not_ok == {**not_ok, "key": "-", "endpoint": "-"}


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_the_unexpected_is_a_line_without_a_secret(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    said = f"no {KEY}\nnor {OPENS}\x1b[31m at http://me:SENTINEL@host/"
    monkeypatch.setattr(skypilot, "server", fails(error(said)))
    result = examine()
    assert result.code == 1
    assert result.texts["SkyPilot server"] == (f"{error.__name__}: no *** nor ***[31m at http://***@host/.")
    assert result.marks["ssh"] == "ok"


# What would fail on a machine that costs money ---------------------------------------------------------------


@pytest.fixture
def on(examine: Examine, tmp_path: Path) -> Callable[..., Examined]:
    """The doctor on the shipped file with other ``resources:`` and envs."""

    def on(resources: dict[str, Any], **envs: str) -> Examined:
        config = task.read()
        config["resources"] = resources
        config["envs"].update(envs)
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(config))
        return examine("--file", file)

    return on


def test_the_same_gpus_in_several_places_are_named_once(on: Callable[..., Examined]) -> None:
    alternatives = [{"infra": "aws", "use_spot": spot, "accelerators": "L4:2"} for spot in (False, True)]
    assert on({"any_of": alternatives}).texts["GPUs"] == "L4:2: each holds the model in bf16"


@pytest.mark.parametrize(
    ("accelerators", "envs", "mark", "why"),
    [
        ("L4:1", {}, "FAIL", "the bf16 weights alone are 23.6 GiB"),
        ("L4:1", {"PRECISION": "fp8"}, "ok", "L4:1: each holds the model in fp8"),
        (["H100", "L4:3"], {}, "FAIL", "Pixtral splits over 1, 2, 4 or 8 GPUs, not 3."),
        ("H10:1", {}, "FAIL", "There is no GPU 'H10' in SkyPilot's catalogs. Did you mean H100?"),
        ("T4:4", {}, "?", "T4:4: T4 is not known here: whether it holds the model shows when it starts."),
        ("L4:1", {"EXTRA_ARGS": "--seed 7"}, "FAIL", "the bf16 weights alone are 23.6 GiB"),
        ("L4:1", {"EXTRA_ARGS": "--cpu-offload-gb 10"}, "?", "EXTRA_ARGS of one's own"),
        (None, {}, "-", "The task file names none. Run: pixtral-sky launch --file "),
    ],
)
def test_gpus(
    on: Callable[..., Examined],
    monkeypatch: pytest.MonkeyPatch,
    accelerators: Any,
    envs: dict[str, str],
    mark: str,
    why: str,
) -> None:
    monkeypatch.setattr(gpus, "_skypilots_gpus", lambda: ["L4", "T4", "H100"])
    result = on({"accelerators": accelerators} if accelerators else {}, **envs)
    assert result.marks["GPUs"] == mark
    assert why in result.texts["GPUs"]
    assert result.code == (mark == "FAIL")


def test_a_value_that_the_script_refuses(on: Callable[..., Examined]) -> None:
    assert "PRECISION=int4 is neither bf16 nor fp8." in on({}, PRECISION="int4").texts["task file"]


IMAGE = {"infra": "azure", "image_id": "microsoft-dsvm:ubuntu-hpc:2204:latest"}


@pytest.mark.parametrize(
    ("enabled", "resources", "mark"),
    [
        (["aws", "azure"], {}, "?"),
        (["azure"], {}, "FAIL"),
        (["azure"], {"infra": "azure/westeurope"}, "FAIL"),
        (["azure"], {"any_of": [IMAGE, {"cloud": "Azure"}]}, "FAIL"),
        (["azure"], {"infra": "azure", "image_id": "docker:vllm/vllm-openai"}, "FAIL"),
        (["azure"], IMAGE, None),
        (["aws", "azure"], {"any_of": [IMAGE, {"infra": "aws"}]}, None),
        (["aws"], {}, None),
    ],
)
def test_azures_old_image(
    on: Callable[..., Examined],
    monkeypatch: pytest.MonkeyPatch,
    enabled: list[str],
    resources: dict[str, Any],
    mark: str | None,
) -> None:
    monkeypatch.setattr(skypilot, "enabled", lambda: enabled)
    result = on({"accelerators": "H100:1", **resources})
    assert result.marks.get("Azure") == mark
    assert result.code == (mark == "FAIL")
    if mark:
        assert "is not known to have the NVIDIA driver 580" in result.texts["Azure"]
        assert ("a launch goes elsewhere" in result.texts["Azure"]) is (mark == "?")
        assert result.texts["Azure"].endswith(f"infra: azure, image_id: {IMAGE['image_id']}")


# ssh, the token and the key --------------------------------------------------------------------------------


def test_no_ssh(examine: Examine, machine: Path) -> None:
    (machine / "ssh").unlink()
    result = examine()
    assert result.code == 1
    assert "There is no ssh on this machine" in result.texts["ssh"]


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "opens only to a Hugging Face token, and there is none here. Accept the licence at http"),
        ("hf_SENTINELold", "does not take this Hugging Face token"),
        (GATED, f"This Hugging Face token does not open {MODEL}. Accept the licence at http"),
        ("hf_SENTINEL é", "characters that a token cannot have"),
    ],
)
def test_a_token_that_opens_nothing(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, token: str, why: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    result = examine()
    assert result.code == 1
    assert result.not_ok == {"Hugging Face": "FAIL", "key": "-", "endpoint": "-"}
    assert why in result.texts["Hugging Face"]


def test_a_model_that_is_open_to_all(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with FakeHub(lambda path, token: (200, {})) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        assert examine().texts["Hugging Face"] == f"{MODEL} is open to all"


def test_the_revision_of_the_task_file(examine: Examine, fake_hub: FakeHub, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"setup: vllm==0.1.2\nrun: vllm serve\nenvs: {{MODEL: {MODEL}, MODEL_REVISION: v2}}\n")
    result = examine("--file", file)
    assert result.texts["Hugging Face"].endswith("Check MODEL and MODEL_REVISION.")
    assert fake_hub.seen == [(f"/{MODEL}/resolve/v2/params.json", OPENS)]


@pytest.mark.parametrize("token", [OPENS, ""])
def test_offline(examine: Examine, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    with FakeHub() as fake:
        pass
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("HF_TOKEN", token)
    result = examine()
    assert result.code == 0
    assert result.marks["Hugging Face"] == "?"
    assert "could not be checked: " in result.texts["Hugging Face"]
    assert result.texts["Hugging Face"].endswith("export HF_TOKEN=...") is not bool(token)


def test_the_token_of_the_login_is_as_secret(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: Callable[..., Served]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(OPENS)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    served(vllm_error(400, f"I know {OPENS}"))
    result = examine()
    assert result.texts["Hugging Face"] == f"the token opens {MODEL}"
    assert result.texts["picture"] == "I know ***."


def test_a_key_of_the_environment(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
    assert examine().texts["key"] == "PIXTRAL_API_KEY is set"


def test_a_key_with_impossible_characters(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", f"{KEY} $")
    result = examine()
    assert result.code == 1
    assert result.texts["key"] == (
        "PIXTRAL_API_KEY has characters that a key cannot have. Make one: openssl rand -hex 32"
    )


# The endpoint ----------------------------------------------------------------------------------------------


def test_another_one_by_its_name(examine: Examine, served: Callable[..., Served]) -> None:
    fake = served(name="other")
    result = examine("other")
    assert result.code == 0
    assert fake.url in result.texts["endpoint"]
    assert (
        examine().texts["endpoint"] == "Nothing is deployed as 'pixtral' (but other). Run: pixtral-sky launch"
    )


def test_pixtral_endpoint(
    examine: Examine, served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = served(name="other")
    with Served(key=KEY) as given:
        monkeypatch.setenv("PIXTRAL_ENDPOINT", f"{given.url}/v1")
        monkeypatch.setenv("PIXTRAL_API_KEY", KEY)
        result = examine()
        assert not result.not_ok
        assert given.url in result.texts["endpoint"]
        # A name goes before it.
        assert fake.url in examine("other").texts["endpoint"]


def test_pixtral_endpoint_without_the_key(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(key=KEY) as given:
        monkeypatch.setenv("PIXTRAL_ENDPOINT", given.url)
        result = examine()
    assert result.code == 1
    assert result.not_ok == {"key": "-", "models": "FAIL", "picture": "?"}
    assert "If it wants one: export PIXTRAL_API_KEY=..." in result.texts["key"]
    assert "asks for a key, and none was given (401)" in result.texts["models"]
    assert result.texts["gateway"] == "shut to all without the key"


def test_a_pixtral_endpoint_that_is_none(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "http://me:SENTINEL@host")
    result = examine()
    assert result.code == 1
    assert result.marks["endpoint"] == "FAIL"
    assert result.marks["picture"] == "?"


def test_a_rehearsal_that_has_ended(examine: Examine) -> None:
    remember("http://127.0.0.1:9", pid_born=1.0)
    result = examine()
    assert result.code == 0
    assert result.marks["endpoint"] == "-"
    assert "has ended" in result.texts["endpoint"]
    assert "picture" not in result.marks


def test_one_without_an_address_yet(examine: Examine) -> None:
    deployments.cluster()
    result = examine()
    assert result.code == 0
    assert result.marks["endpoint"] == "-"
    assert "has no address" in result.texts["endpoint"]


def test_what_is_remembered_is_damaged(examine: Examine, home: Path) -> None:
    deployments.cluster()
    (home / "deployments" / "pixtral.json").write_text("{")
    result = examine()
    assert result.code == 1
    assert result.marks["key"] == "?"
    assert result.marks["endpoint"] == "FAIL"
    assert "is damaged. Remove it: rm " in result.texts["endpoint"]


DEPENDENT = {"models": "?", "gateway": "?", "picture": "?"}


def test_nobody_is_there(examine: Examine) -> None:
    with Served() as fake:
        pass
    remember(fake.url)
    result = examine()
    assert result.code == 1
    assert result.not_ok == {"endpoint": "FAIL", **DEPENDENT}
    assert f"Nothing answers at {fake.url}." in result.texts["endpoint"]
    assert result.texts["gateway"] == "not checked: 'endpoint' comes first."


def test_settings_that_cannot_be_used(
    examine: Examine, served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served()
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    result = examine()
    assert result.not_ok == {"Hugging Face": "?", "endpoint": "FAIL", **DEPENDENT}
    assert "SSL_CERT_FILE" in result.texts["endpoint"]


def test_it_is_not_well(examine: Examine, served: Callable[..., Served]) -> None:
    fake = served(instead={"nobody GET /health": status(503)})
    result = examine()
    assert result.not_ok == {"endpoint": "FAIL", **DEPENDENT}
    assert f"{fake.url} answers GET /health with 503, not 200. " in result.texts["endpoint"]


def test_it_is_something_else(examine: Examine, served: Callable[..., Served]) -> None:
    served(key="", instead={"nobody GET /v1/models": page()})
    result = examine()
    assert result.marks["models"] == "FAIL"
    assert "not as an OpenAI-compatible API does" in result.texts["models"]


def test_a_wrong_key(examine: Examine, served: Callable[..., Served]) -> None:
    fake = served()
    remember(fake.url, key="sk-SENTINEL-old")
    result = examine()
    assert result.code == 1
    assert result.not_ok == {"models": "FAIL", "picture": "?"}
    assert "does not take this key (401)" in result.texts["models"]
    assert result.texts["picture"] == "not checked: 'models' comes first."


@pytest.mark.parametrize(
    ("who", "route", "code"),
    [
        ("nobody", "GET /v1/models", 200),
        ("nobody", "POST /invocations", 405),
        ("nobody", "POST /invocations", 200),
        ("nobody", "POST /invocations", 400),
        ("nobody", "POST /v1/chat/completions", 422),
        ("stranger", "GET /v1/models", 200),
    ],
)
def test_an_open_door(
    examine: Examine, served: Callable[..., Served], who: str, route: str, code: int
) -> None:
    served(instead={f"{who} {route}": status(code)})
    result = examine()
    assert result.code == 1
    assert result.not_ok == {"gateway": "FAIL"}
    whom = "without a key" if who == "nobody" else "to a wrong key"
    assert result.texts["gateway"].startswith(f"{route} answers {code} {whom}, not 401: anyone can use it.")


@pytest.mark.parametrize(
    ("who", "route", "code"),
    [
        ("nobody", "GET /v1/models", 404),
        ("nobody", "POST /invocations", 500),
        ("nobody", "POST /invocations", 302),
        ("stranger", "GET /v1/models", 403),
        ("stranger", "GET /v1/models", 429),
    ],
)
def test_a_door_of_which_nobody_knows(
    examine: Examine, served: Callable[..., Served], who: str, route: str, code: int
) -> None:
    served(instead={f"{who} {route}": status(code)})
    result = examine()
    assert result.not_ok == {"gateway": "FAIL"}
    assert f"{route} answers {code} " in result.texts["gateway"]
    assert "not 401: nobody knows whether it is shut." in result.texts["gateway"]


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_door_that_hangs_up(examine: Examine, served: Callable[..., Served], key: str) -> None:
    fake = served(key=key, instead={"nobody POST /invocations": Exchange.hang_up})
    result = examine()
    assert result.code == 1
    assert result.marks["gateway"] == "FAIL"
    assert f"{fake.url} hangs up on POST /invocations." in result.texts["gateway"]


def test_no_key_and_no_localhost_either(examine: Examine, served: Callable[..., Served]) -> None:
    served(key="", instead={"page GET /v1/models": status(200)})
    result = examine()
    assert result.code == 1
    assert "a web page in a browser here can use it" in result.texts["gateway"]


def test_no_key_and_more_than_the_gateway_shows(examine: Examine, served: Callable[..., Served]) -> None:
    served(key="", instead={"nobody POST /invocations": status(400)})
    assert "the gateway is not before it" in examine().texts["gateway"]


def test_no_key_is_known_for_what_has_one(examine: Examine, served: Callable[..., Served]) -> None:
    fake = served()
    remember(fake.url, key="")
    result = examine()
    assert result.not_ok == {"key": "-", "models": "FAIL", "picture": "?"}
    assert result.texts["gateway"] == "shut to all without the key"


def test_through_a_tunnel(
    examine: Examine, served: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tunnel.Tunnel] = []
    monkeypatch.setattr(tunnel.Tunnel, "open", lambda self: opened.append(self))
    fake = served()
    deployments.cluster(url=fake.url, private=True)
    result = examine()
    assert not result.not_ok
    assert opened[0] == tunnel.Tunnel("pixtral", fake.port, 8081)
    assert "answers through ssh after" in result.texts["endpoint"]


def test_a_tunnel_that_does_not_open(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel.Tunnel, "open", fails(Unreachable("ssh does not reach 'pixtral': no.")))
    deployments.cluster(url="http://127.0.0.1:9", private=True)
    result = examine()
    assert result.not_ok == {"endpoint": "FAIL", **DEPENDENT}
    assert result.texts["endpoint"] == "ssh does not reach 'pixtral': no."


# A picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [{"prompt_tokens": CHART_TOKENS - 1, "completion_tokens": 8}, {}])
def test_a_picture_that_does_not_reach_the_model(
    examine: Examine, served: Callable[..., Served], usage: dict[str, int]
) -> None:
    served(says("A chart.", usage=usage))
    result = examine()
    assert result.code == 1
    assert result.not_ok == {"picture": "FAIL"}
    assert "The picture has not reached the model" in result.texts["picture"]
    assert "chart.png alone is 2,795." in result.texts["picture"]


def test_no_answer(examine: Examine, served: Callable[..., Served]) -> None:
    served(says("", usage={"prompt_tokens": 2803, "completion_tokens": 0}))
    assert examine().texts["picture"].startswith("The answer about chart.png is empty.")


def test_a_picture_that_is_refused(examine: Examine, served: Callable[..., Served]) -> None:
    served(vllm_error(400, "At most 0 image(s) may be provided in one prompt."))
    result = examine()
    assert result.not_ok == {"picture": "FAIL"}
    assert result.texts["picture"] == "At most 0 image(s) may be provided in one prompt."


def test_the_model_that_is_served_is_asked(examine: Examine, served: Callable[..., Served]) -> None:
    fake = served(models=[{"id": "pixtral-large"}])
    result = examine()
    assert result.code == 0
    assert result.texts["models"] == "the key opens pixtral-large"
    assert fake.asked[-1].json["model"] == "pixtral-large"
