"""Pictures by URL: from where they are fetched, and from where never."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import ipaddress
import json
import resource
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import tracemalloc

import pytest
from PIL import Image

from pixtral_sky.server import images
from pixtral_sky.server.body import Share
from pixtral_sky.server.images import Images, is_public
from pixtral_sky.server.refusal import Refusal
from tests.support.gateway import KEY, Server

MIB = 2**20
PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


def drawn(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, kind)
    return file.getvalue()


PNG = drawn("PNG")


def ok(body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Host:
    """A web server whose answers are bytes, or functions that write to the connection. It notes what it is asked."""

    def __init__(self) -> None:
        self.answers = {"/x.png": ok(PNG)}
        self.asked: list[bytes] = []
        self.at_once, self.most = 0, 0
        host = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                host.at_once += 1
                host.most = max(host.most, host.at_once)
                data = b""
                with contextlib.suppress(OSError):
                    while b"\r\n\r\n" not in data:
                        part = self.request.recv(65536)
                        if not part:
                            break
                        data += part
                    host.asked.append(data)
                    path = (data.split() or [b"", b""])[1].decode().partition("?")[0]
                    answer = host.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    if callable(answer):
                        answer(self.request)
                    else:
                        self.request.sendall(answer)
                host.at_once -= 1

        class TheServer(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = TheServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host():
    made = Host()
    yield made
    made.close()


class Network:
    """Names resolve as ``names`` says, each look-up to its next answer. What is dialled is noted, and a public address
    leads to the stand-in; a loopback one to itself, where a trap listens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.dialled: list[str] = []
        real, connect = socket.getaddrinfo, asyncio.SelectorEventLoop.sock_connect

        def getaddrinfo(name, port, *arguments, **options):
            name = name.lower().rstrip(".") if isinstance(name, str) else name
            if name not in self.names:
                return real(name, port, *arguments, **options)
            answers = self.names[name]
            found = answers.pop(0) if len(answers) > 1 else answers[0]
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "not known")
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0))
                if ":" in ip
                else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
                for ip in found
            ]

        async def sock_connect(loop, sock, address):
            self.dialled.append(address[0])
            if address[0] == PUBLIC:
                address = ("127.0.0.1", host.port)
            await connect(loop, sock, address)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)


@pytest.fixture
def network(monkeypatch, host):
    return Network(monkeypatch, host)


def run(coroutine):
    with contextlib.closing(
        asyncio.SelectorEventLoop()
    ) as loop:  # not uvloop, whose connections cannot be noted
        return loop.run_until_complete(coroutine)


def fetched(allowed: str, *urls: str, most: int = 4, room: int = 32 * MIB) -> list[bytes]:
    """The pictures at these URLs, as the gateway puts them into a request. Raises Refusal."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    share = Share(room)
    try:
        run(Images(allowed, most).inline({"messages": [{"role": "user", "content": parts}]}, share))
        found = [part["image_url"]["url"] for part in parts]
        assert share.taken >= sum(map(len, set(found))) - 64 * len(found)
    finally:
        share.release()
    return [base64.b64decode(url.partition(";base64,")[2]) for url in found]


def why(allowed: str, *urls: str, **options) -> str:
    with pytest.raises(Refusal) as caught:
        fetched(allowed, *urls, **options)
    assert (caught.value.status, caught.value.code) == (400, "invalid_image_url")
    return str(caught.value)


# From where ------------------------------------------------------------------------------------------------


FORBIDDEN = [
    # loopback, in the spellings that a look-up takes
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0x0.0x0.0x1",
    "017700000001", "0177.0.0.01", "127.0x1", "localhost", "LOCALHOST", "localhost.", "①②⑦.⓪.⓪.①",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[::ffff:0:127.0.0.1]",
    # this host, private, link-local with the clouds' metadata, CGNAT, and their host agents
    "0.0.0.0", "0", "[::]", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "2852039166",
    "0xA9FEA9FE", "[::ffff:169.254.169.254]", "[fe80::1]", "[fe80::1%25lo]", "[fd00:ec2::254]", "[fc00::1]", "100.64.0.1",
    "100.100.100.200", "192.0.0.192", "168.63.129.16", "[::ffff:168.63.129.16]",
    # multicast, broadcast, reserved, for documents and tests
    "224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "[ff02::1]", "[ff0e::1]", "192.0.2.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "192.88.99.1", "[2001:db8::1]", "[3fff::1]", "[100::1]", "[5f00::1]", "[4000::1]",
]  # fmt: skip


@pytest.fixture
def trap(monkeypatch):
    """A port where connections to loopback are noticed, and which counts as one of the web's."""
    with contextlib.ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = four.getsockname()[1]
        traps = [four]
        with contextlib.suppress(OSError):  # a machine without IPv6
            traps.append(stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6)))
        monkeypatch.setattr(images, "PUBLIC_PORTS", (80, 443, port))
        yield port
        for each in traps:
            each.settimeout(0)
            with pytest.raises(BlockingIOError):
                each.accept()


def test_an_address_that_is_not_public_is_never_dialled(network, host, trap):
    network.names["public.example"] = [[PUBLIC]]
    for address in FORBIDDEN:
        text = why("public", f"http://{address}:{trap}/x.png")
        host.answers["/to"] = f"HTTP/1.1 302 Found\r\nLocation: http://{address}:{trap}/\r\n\r\n".encode()
        assert "'public.example'" in why(
            "public", "http://public.example/to"
        )  # of where it leads nothing is said
        assert "Send the picture as data" in text
    assert set(network.dialled) == {PUBLIC}


def test_nor_one_that_a_name_resolves_to(network, trap):
    texts = set()
    found = []
    for address in FORBIDDEN:
        with contextlib.suppress(ValueError):  # another spelling
            found.append(str(ipaddress.ip_address(address.strip("[]"))))
    assert len(found) > 40
    for ip in [*found, None]:  # None: there is no such name
        network.names["name.example"] = [[ip] if ip else []]
        texts.add(why("public", f"http://name.example:{trap}/x.png"))
    assert texts == {
        "'name.example' cannot be reached at a public address. "
        "Send the picture as data: 'data:image/jpeg;base64,...'."
    }
    assert network.dialled == []


@pytest.mark.parametrize(
    "addresses", [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], ["::1", "10.0.0.1", PUBLIC]]
)
def test_of_a_name_with_both_kinds_only_the_public_is_dialled(network, trap, addresses):
    network.names["both.example"] = [addresses]
    assert fetched("public", "http://both.example/x.png") == [PNG]
    assert network.dialled == [PUBLIC]


def test_an_address_cannot_change_between_look_up_and_dial(network, trap):
    network.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetched("public", "http://rebinding.example/x.png") == [PNG]
    why("public", f"http://rebinding.example:{trap}/x.png")
    assert network.dialled == [PUBLIC]


def test_public_addresses():
    for ip in (PUBLIC, PUBLIC6, "8.8.8.8", "2a00:1450:4001:82a::200e", f"::ffff:{PUBLIC}"):
        assert is_public(ip)
    assert not is_public("fe80::1%eth0")


@pytest.mark.parametrize("port", [8080, 22, 81, 0, 65535])
def test_of_the_public_only_the_web_s_ports_are_asked(network, port):
    network.names["public.example"] = [[PUBLIC]]
    assert "is asked at ports 80 and 443 only" in why("public", f"http://public.example:{port}/x.png")
    assert network.dialled == []


def test_a_named_host_is_asked_wherever_it_is(network, host):
    network.names["intranet.example"] = [["127.0.0.1"]]
    url = f"http://Intranet.Example.:{host.port}/x.png"
    assert fetched("intranet.example,other", url) == [PNG]
    assert fetched("public,intranet.example", url) == [PNG]
    assert fetched("[::1],127.0.0.1", f"http://127.0.0.1:{host.port}/x.png") == [PNG]
    for allowed in ("other", "intranet", "example", "127.0.0.1", "x.intranet.example"):
        assert "IMAGE_URLS does not name it" in why(allowed, url)
    for allowed in ("none", "", "none,public", "none,intranet.example"):
        assert "IMAGE_URLS is 'none' here" in why(allowed, url)
    assert len(host.asked) == 3


def test_a_named_host_cannot_send_it_elsewhere(network, host, trap):
    network.names |= {"intranet.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]}
    for to in (
        f"http://127.0.0.1:{trap}/",
        f"http://other.example:{trap}/",
        f"//localhost:{trap}/",
        "file:///etc/passwd",
    ):
        host.answers["/to"] = f"HTTP/1.1 302 Found\r\nLocation: {to}\r\n\r\n".encode()
        for allowed in ("intranet.example", "public,intranet.example"):
            text = why(allowed, f"http://intranet.example:{host.port}/to")
            assert text.startswith("'intranet.example' ")  # of where it leads nothing is said
            assert "127.0.0.1" not in text
            assert str(trap) not in text


def test_nor_is_it_told_where_it_would(network, host):
    network.names |= {"intranet.example": [["127.0.0.1"]]}
    for to in ("http://secret.example/", "http://10.1.2.3:8081/"):
        host.answers["/to"] = f"HTTP/1.1 302 Found\r\nLocation: {to}\r\n\r\n".encode()
        for allowed in ("intranet.example", "public,intranet.example"):
            text = why(allowed, f"http://intranet.example:{host.port}/to")
            assert "'intranet.example' " in text
            assert not [word for word in ("secret", "10.1", "8081") if word in text]


def test_redirects(network, host):
    network.names["a.example"] = [["127.0.0.1"]]
    for code, to in (
        (301, "/x.png"),
        (302, "x.png"),
        (303, f"http://a.example:{host.port}/x.png"),
        (307, "//{}/x.png"),
        (308, "?"),
    ):
        host.answers["/to"] = (
            f"HTTP/1.1 {code} x\r\nLocation: {to.format(f'a.example:{host.port}')}\r\n\r\n".encode()
        )
        if code != 308:
            assert fetched("a.example", f"http://a.example:{host.port}/to") == [PNG]
    host.asked.clear()
    assert "redirects more than 3 times" in why("a.example", f"http://a.example:{host.port}/to")
    assert len(host.asked) == 4


def test_no_proxy_of_the_environment_is_used(network, host, trap, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap}")
    network.names["public.example"] = [[PUBLIC]]
    assert fetched("public", "http://public.example/x.png") == [PNG]
    assert network.dialled == [PUBLIC]


# What is asked, and what comes -----------------------------------------------------------------------------


def test_a_url_goes_out_as_it_stands(network, host):
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/A%7Eb~c/%2e"] = ok(PNG)
    assert fetched("a.example", f"http://a.example:{host.port}/A%7Eb~c/%2e?X-Sig=a%2Fb+c%3D#part") == [PNG]
    (asked,) = host.asked
    assert asked.startswith(b"GET /A%7Eb~c/%2e?X-Sig=a%2Fb+c%3D HTTP/1.1\r\n")
    lines = asked.decode().lower().split("\r\n")
    assert "accept-encoding: identity" in lines
    assert not [line for line in lines if line.startswith(("cookie", "authorization", "referer"))]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/x.png", "file:///etc/passwd", "gopher://a.example/", "/x.png", "x.png", "", "http://", "http:///x",
        "https:x.png", "unix:/run/x", "s3://bucket/x.png", "javascript:1", "blob:x", "http://[::1", "http://a.example:99999/",
        "http://a.example:x/", "iVBORw0KGgoAAAANSUhEUg", "http://a.example/\r\nX: y", "http://a.example\r\n/", "http://\0/",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_picture(network, url):
    network.names["a.example"] = [["127.0.0.1"]]
    text = why("a.example", url)
    assert "Send the picture as data" in text or "cannot be reached" in text
    assert "\r" not in text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_picture_is_told_by_its_first_bytes(network, host, kind):
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/x"] = ok(drawn(kind), "Content-Type: text/html\r\n")
    part, share = {"type": "image_url", "image_url": {"url": f"http://a.example:{host.port}/x"}}, Share(MIB)
    run(Images("a.example", 4).inline({"messages": [{"content": [part]}]}, share))
    share.release()
    assert part["image_url"]["url"].startswith(f"data:image/{kind.lower()};base64,")


HTML = b"<!doctype html><title>Log in</title>"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"


@pytest.mark.parametrize(
    "body", [HTML, SVG, b"%PDF-1.7 .........", b"", PNG[:7], b"\0" * 99, gzip.compress(PNG)]
)
def test_what_is_no_picture_is_refused(network, host, body):
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/x"] = ok(body, "Content-Type: image/png\r\nContent-Encoding: gzip\r\n")
    assert "What 'a.example' sends is no JPEG, PNG" in why("a.example", f"http://a.example:{host.port}/x")


@pytest.mark.parametrize(
    "status", ["204 No Content", "206 Partial Content", "304 Not Modified", "404 Not Found", "500 Oh"]
)
def test_a_host_s_refusal_is_the_request_s_fault(network, host, status):
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/x"] = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    assert f"'a.example' answered {status[:3]}" in why("a.example", f"http://a.example:{host.port}/x")


def endless(line: bytes, begin: bytes = b""):
    def write(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(line)

    return write


def slow(connection: socket.socket) -> None:
    connection.sendall(ok(PNG)[:80])
    while True:
        time.sleep(0.1)
        connection.sendall(b"x")


OK = b"HTTP/1.1 200 OK\r\n"
MANY = b"x" * MIB


@pytest.mark.parametrize(
    "answer",
    [
        slow,
        lambda connection: time.sleep(3),
        endless(MANY, OK + b"Transfer-Encoding: chunked\r\n\r\n100000\r\n\x89PNG\r\n\x1a\n"),
        endless(MANY, OK + b"\r\n" + PNG),
        endless(b"x: y\r\n" * 9999, OK),
        endless(MANY, OK + b"x: "),
        endless(MANY, b"HTTP/1.1 200 "),
        endless(b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
        endless(b"1;" + MANY, OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        endless(b"x: y\r\n" * 9999, OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"),
        OK + b"Content-Length: 99999999999\r\n\r\n" + PNG,
        ok(PNG)[:-30],
        OK + b"Content-Length: -1\r\n\r\n" + PNG,
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n" * 9,
        b"\x16\x03\x01" + b"\0" * 99,
        b"",
        ok(gzip.compress(b"\x89PNG\r\n\x1a\n" + b"\0" * 64 * MIB), "Content-Encoding: gzip\r\n"),
        ok(gzip.compress(b"\0" * 64 * MIB), "Content-Encoding: deflate\r\nContent-Type: image/png\r\n"),
    ],
    ids=lambda answer: None if isinstance(answer, bytes) else getattr(answer, "__name__", None),
)
def test_a_host_that_does_not_behave_costs_little(network, host, monkeypatch, answer):
    monkeypatch.setattr(images, "EACH_SECONDS", 0.4)
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/x"] = answer
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert "'a.example'" in why("a.example", f"http://a.example:{host.port}/x")
    assert time.monotonic() - begin < 6  # on a busy machine; 0.5 alone
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_what_is_no_url_is_not_remembered(network):
    """A picture without its "data:", say. yarl keeps what it has read."""
    tracemalloc.start()
    try:
        for number in range(20):
            assert why("public", f"/9j/{number}" + "A" * MIB).startswith("'/9j/")
            why("public", f"http://none.example/{number}" + "A" * MIB)
        assert tracemalloc.get_traced_memory()[0] < 20 * MIB  # of 40
    finally:
        tracemalloc.stop()


def test_a_connection_that_fails_in_uvloop_s_way(network, monkeypatch):
    async def sock_connect(loop, sock, address):
        raise RuntimeError("File descriptor 9 is used by transport")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)
    network.names["public.example"] = [[PUBLIC]]
    assert "'public.example'" in why("public", "http://public.example/x.png")


def test_a_certificate_has_to_be_right(network, host, tmp_path):
    network.names["a.example"] = [["127.0.0.1"]]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate(context, tmp_path)
    host.server.socket = context.wrap_socket(
        host.server.socket, server_side=True, do_handshake_on_connect=False
    )
    assert "no valid certificate" in why("a.example", f"https://a.example:{host.port}/x.png")


def certificate(context: ssl.SSLContext, folder) -> None:
    """A certificate of its own making for ``context``."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=a.example",
    ]
    files = [str(folder / "key.pem"), str(folder / "cert.pem")]
    subprocess.run([*command, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context.load_cert_chain(files[1], files[0])


# How much --------------------------------------------------------------------------------------------------


def test_the_same_picture_is_fetched_once(network, host):
    network.names["a.example"] = [["127.0.0.1"]]
    url = f"http://a.example:{host.port}/x.png"
    assert fetched("a.example", url, url, url) == [PNG] * 3
    assert len(host.asked) == 1


def test_no_more_pictures_than_vllm_takes(network, host):
    network.names["a.example"] = [["127.0.0.1"]]
    urls = [f"http://a.example:{host.port}/x.png?{n}" for n in range(5)]
    assert "At most 4 image(s)" in why("a.example", *urls)
    assert host.asked == []
    assert len(fetched("a.example", *urls, most=5)) == 5


def test_all_pictures_together_count_as_the_request_s_own(network, host):
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/big"] = ok(PNG + bytes(300_000))
    urls = [f"http://a.example:{host.port}/big?{n}" for n in range(3)]
    assert "has more than the 0.188 MiB it may have" in why("a.example", urls[0], room=MIB // 4)
    assert len(fetched("a.example", *urls, room=5 * MIB // 4)) == 3
    with pytest.raises(Refusal):
        fetched("a.example", *urls, room=MIB)


def test_all_pictures_together_have_a_time(network, host, monkeypatch):
    monkeypatch.setattr(images, "ALL_SECONDS", 0.5)
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/slow"] = lambda connection: time.sleep(2)
    begin = time.monotonic()
    assert "not here within 0.5 s" in why("a.example", f"http://a.example:{host.port}/slow")
    assert time.monotonic() - begin < 1.5


def test_some_at_once(network, host, monkeypatch):
    monkeypatch.setattr(images, "AT_ONCE", 3)
    network.names["a.example"] = [["127.0.0.1"]]

    def late(connection):
        time.sleep(0.05)
        connection.sendall(ok(PNG))

    host.answers["/late"] = late
    assert (
        len(fetched("a.example", *(f"http://a.example:{host.port}/late?{n}" for n in range(12)), most=12))
        == 12
    )
    assert host.most == 3


def test_when_one_fails_the_others_end(network, host):
    network.names["a.example"] = [["127.0.0.1"]]
    host.answers["/slow"] = slow
    begin = time.monotonic()
    assert "answered 404" in why(
        "a.example", *(f"http://a.example:{host.port}/{name}" for name in ("slow", "gone"))
    )
    assert time.monotonic() - begin < 2


# In each API -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXTRAL_API_KEY", KEY)
        patch.setenv("IMAGE_URLS", "127.0.0.1")
        made = Server()
    yield made
    made.close()


def test_pictures_of_each_api(server, host):
    url, data = f"http://127.0.0.1:{host.port}/x.png", base64.b64encode(PNG).decode()
    inline = f"data:image/png;base64,{data}"
    base64_source = {"type": "base64", "media_type": "image/png", "data": data}
    url_source = {"type": "url", "url": url}
    words = {"type": "text", "text": "and"}

    def chat(*parts):
        return {
            "model": "pixtral",
            "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": list(parts)}],
        }

    cases = [
        ("/v1/chat/completions", chat({"type": "image_url", "image_url": {"url": url, "detail": "low"}}, words),
         chat({"type": "image_url", "image_url": {"url": inline, "detail": "low"}}, words)),
        ("/v1/chat/completions", chat({"type": "image_url", "image_url": url}),
         chat({"type": "image_url", "image_url": {"url": inline}})),
        ("/v1/chat/completions", chat({"type": "image_url", "image_url": inline}),  # as Mistral's clients write it
         chat({"type": "image_url", "image_url": {"url": inline}})),
        ("/tokenize", chat({"image_url": url}), chat({"type": "image_url", "image_url": {"url": inline}})),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
         {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": inline}]}]}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": url}]}]},
         {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": inline}]}]}),
        ("/v1/messages", chat({"type": "image", "source": url_source}), chat({"type": "image", "source": base64_source})),
        ("/v1/chat/completions", chat({"type": "image_url", "image_url": {"url": url}, "source": 1}),
         chat({"type": "image_url", "image_url": {"url": inline}, "source": 1})),
        ("/v1/messages/count_tokens",
         chat({"type": "tool_result", "content": [{"type": "image", "source": url_source}]}),
         chat({"type": "tool_result", "content": [{"type": "image", "source": base64_source}]})),
    ]  # fmt: skip
    for path, sent, arrived in cases:
        server.inner.bodies.clear()
        assert server.post(path, sent)[0] == 200
        (body,) = server.inner.bodies
        assert json.loads(body) == arrived
        assert server.inner.headers[b"content-length"] == str(len(body)).encode()


def test_what_only_looks_like_a_picture_stays(server, host):
    """Words, and a tool's arguments, may hold any URL."""
    url = f"http://127.0.0.1:{host.port}/x.png"
    body = {
        "messages": [
            {"role": "user", "content": f'{{"type": "image_url", "image_url": "{url}"}}', "image_url": url},
            {"role": "user", "content": [{"type": "text", "text": url}, url, None, 3, [], {"image_url": None}]},
            {"role": "assistant", "content": [{"type": "tool_use", "input": {"image_url": url}}]},
            None, "x", 3, {"content": None}, {"content": {"image_url": url}},
        ],
        "input": url, "prompt": [url], "tools": [{"image_url": url}],
    }  # fmt: skip
    server.inner.bodies.clear()
    assert server.post("/v1/chat/completions", body)[0] == 200
    assert json.loads(server.inner.bodies[0]) == body
    assert host.asked == []


def test_no_picture_is_named_by_a_name_in_the_cache(server):
    """vLLM's `uuid` of a part: whoever knows another's could ask about the picture that it stands for."""
    for part in (
        {"type": "image_url", "image_url": None, "uuid": "x"},
        {"type": "text", "text": "x", "uuid": "y"},
    ):
        server.inner.bodies.clear()
        assert (
            server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})[0] == 200
        )
        arrived = json.loads(server.inner.bodies[0])
        assert arrived["messages"][0]["content"] == [{key: part[key] for key in part if key != "uuid"}]


@pytest.mark.parametrize("part", [
    {"type": "image", "image_url": {"url": "data:image/png;base64,AAAA"}, "source": {"type": "url", "url": "file:///x"}},
    {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA"}},
    {"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}},
    {"type": "image", "source": None},
    {"type": "tool_result", "content": [{"type": "image", "source": "x"}]},
])  # fmt: skip
def test_a_picture_in_no_form_is_refused(server, part):
    server.inner.bodies.clear()
    assert server.post("/v1/messages", {"messages": [{"role": "user", "content": [part]}]})[0] == 400
    assert server.inner.bodies == []
