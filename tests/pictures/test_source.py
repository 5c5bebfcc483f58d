"""Where pictures are read from: files, standard input, data: and http(s) URLs."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from PIL import Image

from pixtral_sky.errors import PictureError
from pixtral_sky.pictures import picture, source
from pixtral_sky.pictures.picture import Picture
from pixtral_sky.pictures.source import Source, read_picture
from tests.support import pdfs
from tests.support.pictures import saved

PNG = saved(Image.new("RGB", (96, 64), "red"), "PNG")


def read(location: str | Path) -> Picture:
    return Source(str(location)).read()


# Files


def test_a_file_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "Übergröße und Ärger.jpg"
    path.write_bytes(PNG)
    picture = read(path)
    assert picture.name == str(path)
    assert picture.media_type == "image/png"


def fails(source: str | Path) -> PictureError:
    with pytest.raises(PictureError) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_directory(tmp_path: Path) -> None:
    error = fails(tmp_path)
    assert error.what == f"{tmp_path} is a directory."
    assert f"'{tmp_path}/*.jpg'" in error.hint


def test_no_such_file(tmp_path: Path) -> None:
    assert fails(tmp_path / "a.jpg").what == f"{tmp_path}/a.jpg: no such file."


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "/dev/null/a.jpg"])
def test_no_path(path: str) -> None:
    assert "cannot be read" in fails(path).what


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert fails(pipe).what == f"{pipe} is not a regular file."
    assert fails("/dev/zero").what == "/dev/zero is not a regular file."


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")

    def deny(path: str, _: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(picture, "open", deny, raising=False)
    assert fails(path).what == f"{path} cannot be read: Permission denied."


def test_a_file_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(source.MAX_FILE + 1)  # holds no blocks
    assert fails(path).what == f"{path} is larger than 512 MiB."


def test_a_video_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(source.MAX_FILE + 1)
    assert fails(path).what == f"{path} is a video."


def test_a_file_url(tmp_path: Path) -> None:
    path = tmp_path / "50% of a.jpg"
    path.write_bytes(PNG)
    assert read_picture(path.as_uri()).name == str(path)
    with pytest.raises(PictureError, match="is a file of another machine"):
        read_picture("file://nas/a.jpg")
    with pytest.raises(PictureError, match="Copy it here: aws s3 cp"):
        read_picture("s3://bucket/a.jpg")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(PNG)))
    picture = read("-")
    assert (picture.name, picture.data) == ("standard input", PNG)
    assert fails("-").what == "standard input is empty."
    monkeypatch.setattr(source, "MAX_FILE", 99)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x" * 100)))
    assert "is larger than" in fails("-").what
    monkeypatch.setattr(sys, "stdin", None)
    assert "is closed" in fails("-").what


def test_a_page_of_a_pdf(tmp_path: Path) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(pdfs.made(b"", b""))
    picture = Source(str(file), page=2).read()
    assert (picture.name, picture.width, picture.height) == (f"{file}#page=2", 800, 1024)


def test_the_content_of_a_file() -> None:
    assert read_picture(PNG) == Picture("the picture", 96, 64, "image/png", PNG)
    with pytest.raises(PictureError, match=r"^the picture is not a picture\."):
        read_picture(b"text")


# data: URLs


def test_data_urls() -> None:
    data = PNG
    text = base64.b64encode(data).decode()
    percent = "".join(f"%{byte:02x}" for byte in data)
    for url in (
        f"data:image/png;base64,{text}",
        f"DATA:image/jpeg;BASE64,{text.rstrip('=')}",
        f"data:;base64,{text[:40]}\n {text[40:]}",
        f"data:;base64,{text.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png,{percent}",
    ):
        assert read(url).data == data
    assert read(read_picture(data).data_url()).data == data


@pytest.mark.parametrize(
    "url", ["data:image/png;base64", "data:;base64,!!!!", "data:;base64,A", "data:,\udcff", "data:;base64,ü"]
)
def test_malformed_data_urls(url: str) -> None:
    assert "data: URL is malformed" in fails(url).what


def test_data_urls_of_no_picture() -> None:
    assert fails("data:text/plain,hello").what == "the data: URL is not a picture."
    assert fails("data:image/png;base64,").what == "the data: URL is empty."


# http(s) URLs


class Site(BaseHTTPRequestHandler):
    picture = PNG

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
        path = urlsplit(self.path).path  # a proxy is asked for a whole URL
        if path == "/moved":
            self.answer(302, b"", Location="/a.png")
        elif path == "/circle":
            self.answer(302, b"", Location="/circle")
        elif path == "/away":
            self.answer(302, b"", Location="file:///etc/passwd")
        elif path == "/a.png":
            self.answer(200, self.picture)
        elif path == "/text":
            self.answer(200, b"<html>Log in")
        elif path == "/short":  # less than it says
            self.answer(200, self.picture[:50], length=len(self.picture))
        elif path == "/endless":  # says no length
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(4096))
            except OSError:
                pass
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x")
            self.server.leave.wait(10)  # type: ignore[attr-defined]
        elif path == "/garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        else:
            self.answer(404, b"nothing")

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextlib.contextmanager
def serve() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.seen, server.leave = [], threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.leave.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve() as server:
        yield server


@pytest.fixture
def site(server: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


def test_a_url_is_downloaded(server: ThreadingHTTPServer, site: str) -> None:
    for path in ("/a.png", "/moved"):
        picture = read(f"http://{site}{path}?token=SECRET#SECRET")
        assert picture.name == f"http://{site}{path}"
        assert picture.data == Site.picture
    assert "authorization" not in {name.lower() for name in server.seen[0]}  # type: ignore[attr-defined]


def test_a_url_is_downloaded_through_a_proxy(
    server: ThreadingHTTPServer, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{site}")
    assert read("http://pictures.example/a.png").data == Site.picture
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert read(f"http://{site}/a.png").data == Site.picture
    assert [seen["Host"] for seen in server.seen] == ["pictures.example", site]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/none", "answers 404 Not Found."),
        ("/text", "is not a picture."),
        ("/short", "cannot be downloaded (RemoteProtocolError)."),
        ("/garbage", "cannot be downloaded (RemoteProtocolError)."),
        ("/circle", "cannot be downloaded (TooManyRedirects)."),
        ("/away", "cannot be downloaded (UnsupportedProtocol)."),
        ("/endless", "is larger than 1 MiB."),
        ("/drip", "does not answer within 0.2 s."),
    ],
)
def test_urls_that_give_no_picture(site: str, path: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_DOWNLOAD", source.MIB)
    if path == "/drip":
        monkeypatch.setattr(source, "WAIT_SECONDS", 0.2)
    error = fails(f"http://user:SECRET@{site}{path}?token=SECRET")
    assert error.what == f"http://{site}{path} {what}"
    assert "SECRET" not in str(error)


def test_a_download_that_never_ends(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "DOWNLOAD_SECONDS", 0)
    assert "takes longer than 0 s" in fails(f"http://{site}/endless").what


def test_nobody_there(server: ThreadingHTTPServer, site: str) -> None:
    with serve() as other:
        gone = other.server_address[1]
    error = fails(f"http://user:SECRET@127.0.0.1:{gone}/a.png?SECRET")
    assert error.what.startswith(f"http://127.0.0.1:{gone}/a.png cannot be reached: ")
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    "url", ["http://[::1/a.png", "http://user:SEC/RET@host/a", "https://", "http://a b/c"]
)
def test_malformed_urls(url: str) -> None:
    error = fails(url)
    assert "cannot be" in error.what
    assert "RET" not in str(error)
