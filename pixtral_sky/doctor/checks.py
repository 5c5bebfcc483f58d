"""Checks what a launch needs, and whether a running deployment works.

Each check runs when its result is asked for. The checks start SkyPilot's local server where none runs, and
their picture restarts the idle clock of a deployment; they change nothing else.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from pixtral_sky import __version__, extras
from pixtral_sky.client.client import Client
from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy import candidates, huggingface, skypilot, store, task
from pixtral_sky.deploy.resolve import check_key, find
from pixtral_sky.errors import NoEndpoint, PixtralSkyError, Unauthorized, Unreachable
from pixtral_sky.text import printable

State = Literal["ok", "failed", "unchecked", "absent"]
MARKS: dict[State, str] = {"ok": "ok", "failed": "FAIL", "unchecked": "?", "absent": "-"}

QUESTION = "What is this?"
ANSWER_TOKENS = 8
WAIT_SECONDS = 10.0  # for a response without inference
PICTURE_SECONDS = 120.0  # for an answer about a picture, which may be the server's first


@dataclass(frozen=True)
class Check:
    """The result for one ``subject``; ``hint`` says what mends it. It holds no secret."""

    state: State
    subject: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{MARKS[self.state]:<4} {self.subject:<15} {self.text} {self.hint}".rstrip()


def examine(name: str | None = None, file: Path | None = None) -> Iterator[Check]:
    """Check the task ``file`` (or the shipped one) and the endpoint that ``resolve.find`` finds.

    An error in a check is its result, and is not raised.
    """
    return _Examination(name, file).run()


class _Unchecked(PixtralSkyError):
    """The check could not be made."""

    state: State = "unchecked"


class _Absent(PixtralSkyError):
    """There is nothing to check yet."""

    state: State = "absent"


class _Examination:
    """Each check is a method that returns what is well, or raises what is not; an empty text is not shown."""

    the_task: task.Task
    endpoint: Endpoint
    launch = "pixtral-sky launch"  # the command that launches the task file
    resources: Any = None  # of the task file
    enabled: Sequence[str] = ()

    def __init__(self, name: str | None, file: Path | None) -> None:
        self.name = name
        self.file = file
        names = ("PIXTRAL_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        self.secrets = {os.environ.get(each, "") for each in names}

    def run(self) -> Iterator[Check]:
        # The subject, its check, and the subjects that it depends on.
        steps: tuple[tuple[str, Callable[[], str], tuple[str, ...]], ...] = (
            ("pixtral-sky", self.versions, ()),
            ("task file", self.task_file, ()),
            ("SkyPilot", self.skypilot, ()),
            ("SkyPilot server", skypilot.server, ("SkyPilot",)),
            ("SkyPilot infra", self.infra, ("SkyPilot server",)),
            ("Azure", self.azure, ()),
            ("SkyPilot task", self.sky_task, ("SkyPilot", "task file")),
            ("GPUs", self.gpus, ("task file",)),
            ("ssh", self.ssh, ()),
            ("Hugging Face", self.hugging_face, ("task file",)),
            ("key", self.key, ()),
            ("endpoint", self.reach, ()),
            ("models", self.models, ("endpoint",)),
            ("gateway", self.gateway, ("endpoint",)),
            ("picture", self.picture, ("models",)),
        )
        found: dict[str, State] = {}
        for subject, step, needs in steps:
            missing = [need for need in needs if found[need] != "ok"]
            if any(found[need] == "absent" for need in missing):
                check = Check("absent", subject, "")
            elif missing:
                check = Check("unchecked", subject, f"not checked: {missing[0]!r} comes first.")
            else:
                check = self.tried(subject, step)
            found[subject] = check.state
            if check.text:
                yield check

    def tried(self, subject: str, step: Callable[[], str]) -> Check:
        state: State = "ok"
        text, hint = "", ""
        try:
            text = step()
        except PixtralSkyError as error:
            state = getattr(error, "state", "failed")
            text, hint = error.what, error.hint
        except (Exception, SystemExit) as error:  # SystemExit: SkyPilot's libraries may exit
            state, text = "failed", f"{type(error).__name__}: {error}".rstrip(".: ") + "."
        return Check(state, subject, self.clean(text), self.clean(hint))

    def clean(self, text: str) -> str:
        """``text`` in one line and without secrets: it may quote other programs."""
        # A shorter value is no secret, and may be part of any word.
        for secret in filter(lambda each: len(each) >= 6, self.secrets):
            text = text.replace(secret, "***")
        text = re.sub(r"://[^/\s@]+@", "://***@", text)  # a password in a URL
        return " ".join(printable(text.replace("\n", " ")).split())

    # This machine ------------------------------------------------------------------------------------------

    def versions(self) -> str:
        return f"{__version__}, on Python {platform.python_version()}"

    def task_file(self) -> str:
        self.the_task = task.load(self.file)
        self.the_task.check({})
        file = self.the_task.config
        self.resources = file.get("resources")
        if self.file:
            command = "serve up" if "service" in file else "launch"
            self.launch = f"pixtral-sky {command} --file {shlex.quote(str(self.file))}"
        return f"{self.the_task.path}, with vLLM {self.the_task.vllm_version}"

    def skypilot(self) -> str:
        version, made_for = skypilot.installed(), extras.skypilot()
        if not version:
            raise PixtralSkyError(
                "It is not installed; a launch needs it.", f"Run: {extras.install_skypilot()}"
            )
        return version if made_for in ("", version) else f"{version}; {made_for} is what was tested"

    def infra(self) -> str:
        self.enabled = skypilot.enabled()
        if not self.enabled:
            raise PixtralSkyError("No cloud, Kubernetes or Slurm is enabled.", "Run: sky check")
        return ", ".join(self.enabled)

    def azure(self) -> str:
        """Only where Azure is enabled: setup would find its old driver after the machine costs money."""
        if "azure" not in self.enabled or not any(
            map(_on_azures_default_image, candidates.alternatives(self.resources))
        ):
            return ""
        others = len(self.enabled) > 1
        raise (_Unchecked if others else PixtralSkyError)(
            f"{candidates.OLD_IMAGE}{', and a launch goes elsewhere' if others else ''}.",
            f"Under resources: of a file of yours, infra: azure, image_id: {candidates.NEW_IMAGE}",
        )

    def sky_task(self) -> str:
        skypilot.check_file(self.file)
        return "SkyPilot takes the task file"

    def gpus(self) -> str:
        envs = self.the_task.envs
        names = ", ".join(dict.fromkeys(candidates.accelerators(self.resources)))
        if not names:
            raise _Absent("The task file names none.", f"Run: {self.launch} --gpus L4:2")
        said = candidates.check_gpus(None, {"resources": self.resources}, envs)
        if candidates.has_own_needs(envs):
            said.append("With a MODEL or EXTRA_ARGS of one's own, what they hold shows when it starts.")
        if said:
            raise _Unchecked(f"{names}: {' '.join(said)}")
        return f"{names}: each holds the model in {envs.get('PRECISION') or 'bf16'}"

    def ssh(self) -> str:
        program = shutil.which("ssh")
        if not program:
            raise PixtralSkyError(
                "There is no ssh on this machine, and no other way to a server without an open port.",
                "Install OpenSSH's client: apt install openssh-client",
            )
        said = subprocess.run(
            [program, "-V"], stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_SECONDS
        )
        return said.stderr.decode(errors="replace").partition(",")[0].strip() or program

    # Secrets -----------------------------------------------------------------------------------------------

    def hugging_face(self) -> str:
        model = self.the_task.envs.get("MODEL", "")
        if not model:
            raise PixtralSkyError(f"{self.the_task.path} names no model.", "It wants an env: MODEL")
        if huggingface.is_directory(model):
            return f"{model} is a directory on the machine: no token is needed"
        token = huggingface.token()
        self.secrets.add(token)
        if why := huggingface.check(model, token, self.the_task.envs.get("MODEL_REVISION") or "main"):
            raise _Unchecked(why, "" if token else "There is no token here: export HF_TOKEN=...")
        return f"the token opens {model}" if token else f"{model} is open to all"

    def key(self) -> str:
        key = os.environ.get("PIXTRAL_API_KEY", "")
        check_key(key, "Make one: openssl rand -hex 32")
        if key:
            return "PIXTRAL_API_KEY is set"
        if self.name is None and os.environ.get("PIXTRAL_ENDPOINT"):
            raise _Absent("None is set for PIXTRAL_ENDPOINT.", "If it wants one: export PIXTRAL_API_KEY=...")
        name = self.name or store.DEFAULT_NAME
        try:
            known = store.recall(name)
        except PixtralSkyError as error:
            raise _Unchecked(error.what, error.hint) from error
        if known is None:
            raise _Absent("There is none yet: one is made at launch.")
        if not known.key:
            raise _Absent(f"None is remembered for {name!r}.")
        self.secrets.add(known.key)
        return f"the one of {name!r} is remembered"

    # The endpoint ------------------------------------------------------------------------------------------

    def reach(self) -> str:
        try:
            self.endpoint = find(name=self.name)
        except NoEndpoint as error:
            name = self.name or store.DEFAULT_NAME
            if store.recall(name) is not None:  # it has ended, or has no address yet
                raise _Absent(error.what, error.hint) from error
            others = ", ".join(store.known())
            raise _Absent(
                f"Nothing is deployed as {name!r}{f' (but {others})' if others else ''}.",
                f"Run: {self.launch}",
            ) from error
        self.secrets.add(self.endpoint.key)
        began = time.monotonic()
        if self.endpoint.tunnel:
            self.endpoint.tunnel.open()
        # Baseten's gateway has no public route.
        key = {"Authorization": self.endpoint.authorization} if self.endpoint.is_baseten else None
        status = self.status("GET", "/health", key)
        if status != 200:
            raise PixtralSkyError(
                f"{self.endpoint.url} answers GET /health with {status}, not 200.", self.endpoint.hint
            )
        way = " through ssh" if self.endpoint.tunnel else ""
        return f"{self.endpoint.url} answers{way} after {time.monotonic() - began:.2f} s"

    def models(self) -> str:
        with Client(self.endpoint, budget=0, read_timeout=WAIT_SECONDS) as client:
            names = ", ".join(model["id"] for model in client.models())
            self.endpoint = client.learn()
        length = self.endpoint.max_model_len
        return f"{'the key opens' if self.endpoint.key else 'without a key:'} {names}" + (
            f", for {length:,} tokens" if length else ""
        )

    def gateway(self) -> str:
        here = not self.endpoint.key and _is_this_machine(self.endpoint.url)
        if here and self.status("GET", "/v1/models") == 200:
            return self.local_gateway()
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", "/invocations"),
            ("POST", "/v1/chat/completions"),
        ):
            status = self.status(method, path)
            # A missing route (404) is shut too, but the list of models is never missing.
            if status != 401 and not (status == 404 and method == "POST"):
                raise self.not_shut(f"{method} {path} answers {status} without a key, not 401", status)
        status = self.status("GET", "/v1/models", {"Authorization": f"Bearer {secrets.token_hex(32)}"})
        if status != 401:
            raise self.not_shut(f"GET /v1/models answers {status} to a wrong key, not 401", status)
        return "shut to all without the key"

    def local_gateway(self) -> str:
        """Without a key, only this machine can use the endpoint, and no page in a browser can."""
        hint = "Launch it again with the pixtral.yaml of this version."
        status = self.status("GET", "/v1/models", {"Host": "pixtral.invalid"})
        if status not in (401, 403, 404):
            raise PixtralSkyError(
                f"GET /v1/models answers {status} to a request that is not for localhost: a web page in a "
                "browser here can use it.",
                hint,
            )
        status = self.status("POST", "/invocations")
        if status not in (401, 404):
            raise PixtralSkyError(f"POST /invocations answers {status}: the gateway is not before it.", hint)
        return "no key: it is closed only by listening on 127.0.0.1, to all but the users of its machine"

    def not_shut(self, what: str, status: int) -> PixtralSkyError:
        # A server with these statuses has read the request: a valid one would get an answer.
        let_in = status < 300 or status in (400, 405, 413, 415, 422)
        meaning = "anyone can use it" if let_in else "nobody knows whether it is shut"
        return PixtralSkyError(
            f"{what}: {meaning}.", "Take it down, and launch it with the pixtral.yaml of this version."
        )

    def picture(self) -> str:
        from pixtral_sky.pictures.prepare import prepare

        picture = prepare(task.shipped("examples/chart.png").read_bytes(), "chart.png")
        began = time.monotonic()
        with Client(self.endpoint, budget=WAIT_SECONDS, read_timeout=PICTURE_SECONDS) as client:
            document = client.complete([QUESTION, picture], max_tokens=ANSWER_TOKENS, temperature=0)
        seconds = time.monotonic() - began
        usage = document.get("usage") or {}
        prompt, answer = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        if prompt < picture.tokens:
            raise PixtralSkyError(
                f"The picture has not reached the model: the prompt was {prompt:,} tokens, and chart.png "
                f"alone is {picture.tokens:,}.",
                "Does it serve Pixtral?",
            )
        if not answer and not document["choices"][0]["message"].get("content"):
            raise PixtralSkyError("The answer about chart.png is empty.", "Its log tells more.")
        return (
            f"an answer about chart.png ({picture.tokens:,} tokens): {prompt:,} tokens in the prompt, "
            f"{answer} in the answer, {seconds:.1f} s"
        )

    def status(self, method: str, path: str, headers: dict[str, str] | None = None) -> int:
        """The status of a response to a request without the key. Raises EndpointError without a response."""
        url = self.endpoint.url
        try:
            with (
                httpx.Client(
                    timeout=WAIT_SECONDS,
                    trust_env=not _is_this_machine(url),
                    headers={"User-Agent": f"pixtral-sky/{__version__}", **(headers or {})},
                    verify=httpx.create_ssl_context(),
                ) as http,
                http.stream(method, url + path, json={} if method == "POST" else None) as answer,
            ):
                return answer.status_code
        # Errors that are not httpx's: SSL_CERT_FILE names no file, the address of a proxy is wrong.
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
            # The client explains the error. Where it gets a response, only this request failed.
            with (
                Client(replace(self.endpoint, key=""), budget=0, read_timeout=WAIT_SECONDS) as client,
                contextlib.suppress(Unauthorized),
            ):
                client.models()
            raise Unreachable(f"{url} hangs up on {method} {path}.", self.endpoint.hint) from error


def _is_this_machine(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _on_azures_default_image(resources: Mapping[str, Any]) -> bool:
    """Whether ``resources`` let SkyPilot take a machine of Azure with SkyPilot's own image."""
    cloud = str(resources.get("infra") or resources.get("cloud") or "azure").lower().partition("/")[0]
    image = str(resources.get("image_id") or "docker:")  # a container runs on the machine's own image
    return cloud == "azure" and image.startswith("docker:")
