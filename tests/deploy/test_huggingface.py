"""The Hub as seen from here: whose token, and what it opens. The Hub is a real HTTP server on loopback."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pixtral_sky.deploy import huggingface
from pixtral_sky.errors import HubError, PixtralSkyError
from pixtral_sky.pixtral import MODEL

OPENS = "hf_SENTINELopens"
GATED = "hf_SENTINELgated"
VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HF_ENDPOINT"),
    *("HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_HUB_OFFLINE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)


class FakeHub:
    """A hub with one model behind a gate. ``seen`` has the path and the token of each request."""

    def __init__(self, answer: Callable[[str, str], tuple[int, dict[str, str]]] | None = None) -> None:
        self.seen: list[tuple[str, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
                fake.seen.append((self.path, token))
                status, headers = (answer or fake.gate)(self.path, token)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def gate(self, path: str, token: str) -> tuple[int, dict[str, str]]:
        if token not in (OPENS, GATED):
            return 401, {"X-Error-Code": "GatedRepo"}
        if token == GATED:
            return 403, {"X-Error-Code": "GatedRepo"}
        if path == f"/{MODEL}/resolve/main/params.json":  # small files are a redirect away
            return 307, {"Location": f"/api/resolve-cache/models/{MODEL}/params.json"}
        return (200 if path.startswith("/api/") else 404), {}

    def __enter__(self) -> FakeHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


# The token -------------------------------------------------------------------------------------------------


@pytest.fixture
def login(tmp_path: Path) -> Callable[[str], None]:
    """Writes a token where `hf auth login` would, under the user's home."""

    def login(place: str, content: str = "hf_file\n") -> None:
        path = tmp_path / "user" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return login


def test_there_is_none() -> None:
    assert huggingface.token({}) == ""


def test_the_environment_comes_before_the_login(login: Callable[[str], None]) -> None:
    login(".cache/huggingface/token")
    assert huggingface.token({"HF_TOKEN": "hf_new", "HUGGING_FACE_HUB_TOKEN": "hf_old"}) == "hf_new"
    assert huggingface.token({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_old"}) == "hf_old"
    assert huggingface.token({"HF_TOKEN": ""}) == "hf_file"


@pytest.mark.parametrize(
    ("place", "environ"),
    [
        (".cache/huggingface/token", {}),
        ("xdg/huggingface/token", {"XDG_CACHE_HOME": "~/xdg"}),
        ("hf/token", {"HF_HOME": "$HOME/hf", "XDG_CACHE_HOME": "~/xdg"}),
        ("secret", {"HF_TOKEN_PATH": "~/secret", "HF_HOME": "~/hf"}),
        (".cache/huggingface/token", {"HF_TOKEN_PATH": "", "HF_HOME": "", "XDG_CACHE_HOME": ""}),
    ],
)
def test_the_login_is_where_huggingface_hub_has_it(
    login: Callable[[str], None], place: str, environ: dict[str, str]
) -> None:
    login(place)
    assert huggingface.token(environ) == "hf_file"


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_the_login_is_left_alone_on_request(login: Callable[[str], None], value: str) -> None:
    login(".cache/huggingface/token")
    environ = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": value}
    assert huggingface.token(environ) == ""
    assert huggingface.token({**environ, "HF_TOKEN": "hf_mine"}) == "hf_mine"
    assert huggingface.token({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}) == "hf_file"


def test_white_space_around_it_is_not_of_it(login: Callable[[str, str], None]) -> None:
    assert huggingface.token({"HF_TOKEN": " hf_\r\nnew\r\n "}) == "hf_new"
    login(".cache/huggingface/token", "\n hf_file \n\n")
    assert huggingface.token({}) == "hf_file"
    assert huggingface.token({"HF_TOKEN": "\n"}) == ""


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "bytes", "no text"), ("a\0b", "no text")):
        with pytest.raises(HubError, match=why):
            huggingface.token({"HF_TOKEN_PATH": str(path)})
    assert huggingface.token({"HF_TOKEN_PATH": str(tmp_path / "bytes" / "token")}) == ""


# What it opens ---------------------------------------------------------------------------------------------


def test_a_token_that_opens_the_gate(fake: FakeHub) -> None:
    assert huggingface.check(MODEL, OPENS) == ""
    # The redirect stays on the same host, and so does the token.
    assert [token for _, token in fake.seen] == [OPENS, OPENS]
    assert fake.seen[0][0] == f"/{MODEL}/resolve/main/params.json"


def test_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(lambda path, token: (200, {})) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
        monkeypatch.setenv("http_proxy", proxy.url)
        assert huggingface.check(MODEL, OPENS) == ""
    assert proxy.seen == [(f"http://hub.example/{MODEL}/resolve/main/params.json", OPENS)]


def test_no_token(fake: FakeHub) -> None:
    with pytest.raises(HubError) as caught:
        huggingface.check(MODEL, "")
    assert caught.value.what == f"{MODEL} opens only to a Hugging Face token, and there is none here."
    assert caught.value.hint == (
        f"Accept the licence at {fake.url}/{MODEL}, make a token at {fake.url}/settings/tokens, "
        "then: export HF_TOKEN=..."
    )
    assert fake.seen == [(f"/{MODEL}/resolve/main/params.json", "")]


def test_a_wrong_token(fake: FakeHub) -> None:
    with pytest.raises(HubError, match="does not take this Hugging Face token: it is wrong, or has expired"):
        huggingface.check(MODEL, "hf_SENTINELold")


def test_a_gate_that_is_closed(fake: FakeHub) -> None:
    with pytest.raises(HubError) as caught:
        huggingface.check(MODEL, GATED)
    assert caught.value.what == f"This Hugging Face token does not open {MODEL}."
    assert f"Accept the licence at {fake.url}/{MODEL} with the account of the token" in caught.value.hint
    assert "fine-grained token also needs read access to gated repositories" in caught.value.hint


def test_no_such_model(fake: FakeHub) -> None:
    with pytest.raises(HubError) as caught:
        huggingface.check("mistralai/Pixtral-13B", OPENS)
    assert str(caught.value) == (
        f"There is no mistralai/Pixtral-13B in Mistral's format (no params.json) at {fake.url}. Check MODEL."
    )


def test_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(lambda path, token: (200 if "/v1.0/" in path else 404, {})) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        assert huggingface.check(MODEL, OPENS, "v1.0") == ""
        with pytest.raises(HubError) as caught:
            huggingface.check(MODEL, OPENS, "refs/pr/7")
    assert [path for path, _ in fake.seen] == [
        f"/{MODEL}/resolve/{revision}/params.json" for revision in ("v1.0", "refs%2Fpr%2F7")
    ]
    assert caught.value.what.endswith(f"(no params.json at revision refs/pr/7) at {fake.url}.")
    assert caught.value.hint == "Check MODEL and MODEL_REVISION."


@pytest.mark.parametrize("revision", ["", "a b", "../main", "main?x", "main\n", "é"])
def test_what_is_no_revision_is_not_asked_for(fake: FakeHub, revision: str) -> None:
    with pytest.raises(HubError, match="is no revision of a model"):
        huggingface.check(MODEL, OPENS, revision)
    assert not fake.seen


def test_a_model_that_is_open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(lambda path, token: (200, {})) as fake:
        monkeypatch.setenv("HF_ENDPOINT", f"{fake.url}/")
        assert huggingface.check("gpt2", "") == ""
        assert fake.seen == [("/gpt2/resolve/main/params.json", "")]


def test_another_host_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(lambda path, token: (200, {})) as other:
        with FakeHub(lambda path, token: (302, {"Location": f"{other.url}/cdn"})) as fake:
            monkeypatch.setenv("HF_ENDPOINT", fake.url)
            assert huggingface.check(MODEL, OPENS) == ""
            assert fake.seen[0][1] == OPENS
        assert other.seen == [("/cdn", "")]


@pytest.mark.parametrize("model", ["/models/pixtral", "./pixtral", "../pixtral", "~/pixtral"])
def test_a_directory_needs_none(fake: FakeHub, model: str) -> None:
    assert huggingface.check(model, "") == ""
    assert not fake.seen


@pytest.mark.parametrize("model", ["", "a b", "a/b/c", "a/b?x", "https://huggingface.co/a/b", "a/b\n", "é/b"])
def test_what_is_no_model_is_not_asked_for(fake: FakeHub, model: str) -> None:
    with pytest.raises(HubError, match="neither a model on the Hub nor a directory"):
        huggingface.check(model, OPENS)
    assert not fake.seen


@pytest.mark.parametrize("token", ["hf_SENTINEL é", "hf_SENTINEL\r\nHost: evil", "Bearer hf_SENTINEL", '"'])
def test_a_token_with_impossible_characters_is_not_sent(fake: FakeHub, token: str) -> None:
    with pytest.raises(HubError, match="characters that a token cannot have") as caught:
        huggingface.check(MODEL, token)
    assert "SENTINEL" not in str(caught.value)
    assert not fake.seen


@pytest.mark.parametrize(
    "url",
    [
        "huggingface.co",
        "ftp://huggingface.co",
        "https://",
        "https://huggingface.co:port",
        "https://me:SENTINEL@huggingface.co",
        "https://huggingface.co?x",
        "https://hugging face.co",
        "https://[::1",
    ],
)
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(HubError, match="HF_ENDPOINT is not the address of a hub") as caught:
        huggingface.check(MODEL, OPENS)
    assert "SENTINEL" not in str(caught.value)


# Trouble on the way ----------------------------------------------------------------------------------------


def answers(status: int, **headers: str) -> Callable[[str, str], tuple[int, dict[str, str]]]:
    return lambda path, token: (status, headers)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answers(503), "answers 503"),
        (answers(429), "answers 429"),
        (answers(302, Location="/again"), "TooManyRedirects"),
        (answers(302, Location="ftp://127.0.0.1/"), "UnsupportedProtocol"),
        (answers(302, Location="http://me:SENTINEL@host:port/"), "RemoteProtocolError"),
    ],
)
def test_trouble_of_the_hub_is_no_error(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, str], tuple[int, dict[str, str]]], why: str
) -> None:
    with FakeHub(answer) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        said = huggingface.check(MODEL, OPENS)
    assert said.startswith(f"Whether {MODEL} opens to this token could not be checked: {fake.url} ")
    assert why in said
    assert "SENTINEL" not in said


def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub() as fake:
        pass
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    said = huggingface.check(MODEL, "")
    assert said.startswith(
        f"Whether {MODEL} opens without a token could not be checked: {fake.url} cannot be"
    )
    assert "refused" in said


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "WAIT_SECONDS", 0.2)
    done = threading.Event()

    def hang(path: str, token: str) -> tuple[int, dict[str, str]]:
        done.wait(20)
        return 200, {}

    with FakeHub(hang) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        try:
            assert "no answer within 0.2 s" in huggingface.check(MODEL, OPENS)
        finally:
            done.set()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SSL_CERT_FILE", "/nowhere"), ("HTTP_PROXY", "gopher://me:SENTINEL@proxy")],
)
def test_settings_that_cannot_be_used(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("NO_PROXY", "")
    said = huggingface.check(MODEL, OPENS)
    assert "the proxy or certificate settings of this environment cannot be used" in said
    assert "SENTINEL" not in said


def test_the_wish_to_be_offline_is_kept(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert huggingface.check(MODEL, OPENS).endswith("could not be checked: HF_HUB_OFFLINE is set.")
    assert not fake.seen


@pytest.mark.parametrize("token", [GATED, "hf_SENTINELold"])
def test_the_token_is_shown_nowhere(fake: FakeHub, caplog: pytest.LogCaptureFixture, token: str) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PixtralSkyError) as caught:
        huggingface.check(MODEL, token)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert "SENTINEL" not in shown
    assert "HEAD" in caplog.text
