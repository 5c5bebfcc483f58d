"""Pictures that a request names by URL: fetched here, once, and put into the request as data.

vLLM fetches nothing. IMAGE_URLS says from where: `public` (hosts at public addresses), `none`, or names of
hosts, wherever they are. An address is judged when it is dialled, so no second look-up can change it; each
redirect is judged anew. An error says the same of a host that is hidden as of one that does not exist.
"""

import asyncio
import base64
import functools
import ipaddress
import re
import socket
import ssl

from .counts import count
from .refusal import Refusal

AT_ONCE = 16  # on this server
EACH_SECONDS, ALL_SECONDS = 10, 20
EACH_BYTES = 16 * 2**20
REDIRECTS = 3
PUBLIC_PORTS = (80, 443)
KIND = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<gif>GIF8)|(?P<webp>RIFF....WEBP)|(?P<bmp>BM)"
    rb"|(?P<tiff>II\*\0|MM\0\*)|(?P<avif>....ftypavi[fs])",
    re.DOTALL,
)
# Not public, though some Python's ipaddress calls them global: the clouds' host agents, networks that lead to
# other addresses (6to4 and its relays, Teredo), and those of documents.
HIDDEN = [
    ipaddress.ip_network(each)
    for each in ("168.63.129.16", "192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
]
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # IPv4 in IPv6 is outside of it


def is_public(address):
    """Whether ``address``, as it is dialled, is one of the internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if not ip.is_global or ip.is_multicast or any(ip in network for network in HIDDEN):
        return False
    return ip.version == 4 or ip in GLOBAL_IPV6


def places(body):
    """Each part of the messages or the input, with its picture's URL or None: of chat completions (the URL in
    an object, or alone), of responses, and of Anthropic's messages (also in the results of tools)."""
    for field in ("messages", "input"):
        items = body.get(field)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict):
                for parts in (item.get("content"), item.get("output")):
                    yield from within(parts)


def within(parts, inside=False):
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            url, source = part.get("image_url"), part.get("source")
            if part.get("type") == "image":
                if not isinstance(source, dict):
                    raise refused("A part of the type 'image' has a source, which is an object")
                url = source.get("url") if source.get("type") == "url" else None
            elif isinstance(url, dict):
                url = url.get("url")
            yield part, url if isinstance(url, str) else None
            if part.get("type") == "tool_result" and not inside:
                yield from within(part.get("content"), inside=True)


def put(part, kind, data):
    """Put the picture into the part, in the form of its API."""
    text = base64.b64encode(data).decode()
    if part.get("type") == "image":
        part["source"] = {"type": "base64", "media_type": f"image/{kind}", "data": text}
    elif isinstance(part["image_url"], dict):
        part["image_url"]["url"] = f"data:image/{kind};base64,{text}"
    else:
        part["image_url"] = f"data:image/{kind};base64,{text}"


class Images:
    """``allowed`` is IMAGE_URLS; ``most`` is the number of pictures in a request."""

    def __init__(self, allowed, most):
        words = set(allowed.lower().split(","))
        if "none" in words:
            words = set()
        self.public = "public" in words
        self.hosts = {word.strip("[]").rstrip(".") for word in words - {"public", ""}}
        self.most = most
        self.at_once = asyncio.Semaphore(AT_ONCE)

    async def inline(self, body, share):
        """Put every picture that ``body`` names by URL into it; whether it has changed. Raises Refusal."""
        named, changed = {}, False
        for part, url in places(body):
            # A name in vLLM's cache, by which one client could ask about another's picture.
            changed |= part.pop("uuid", None) is not None
            if url is None:
                continue
            if "type" not in part or (part["type"] == "image_url" and isinstance(part["image_url"], str)):
                # Mistral's and vLLM's own form, as OpenAI's.
                part |= {"type": "image_url", "image_url": {"url": url}}
                changed = True
            if not url.startswith("data:"):  # mistral-common does not know it in capitals
                named.setdefault(url, []).append(part)
            elif ";base64," not in url[:200]:
                raise refused("A picture's data URL has to be in base64")
        if not named:
            return changed
        if sum(map(len, named.values())) > self.most:
            message = f"At most {self.most} image(s) may be provided in one prompt."  # vLLM's words
            raise Refusal(400, "invalid_image_url", message)
        fetches = [asyncio.ensure_future(self.fetch(url, share)) for url in named]
        try:
            found = await asyncio.wait_for(asyncio.gather(*fetches), ALL_SECONDS)
        except asyncio.TimeoutError:
            raise refused(f"The pictures were not here within {ALL_SECONDS} s") from None
        finally:
            for fetch in fetches:
                fetch.cancel()
            await asyncio.gather(*fetches, return_exceptions=True)
        for parts, (kind, data) in zip(named.values(), found, strict=True):
            for part in parts:
                put(part, kind, data)
        return True

    async def fetch(self, text, share):
        """The kind and the bytes of the picture at a URL."""
        import aiohttp

        count("pictures", "Pictures that requests name by URL")
        url = parsed(text)
        if url is None:
            raise refused(f"{text[:40]!a} is no http(s) URL of a picture")
        host = url.host
        async with self.at_once:
            try:
                return await asyncio.wait_for(self.follow(url, share), EACH_SECONDS)
            except asyncio.TimeoutError:
                raise refused(f"{host!r} did not send its picture within {EACH_SECONDS} s") from None
            except aiohttp.ClientConnectorCertificateError:
                raise refused(f"{host!r} has no valid certificate") from None
            except aiohttp.ClientConnectorError:
                where = "" if self.is_named(url) else " at a public address"
                raise refused(f"{host!r} cannot be reached{where}") from None
            except (aiohttp.ClientError, OSError, RuntimeError, ValueError):  # uvloop raises a RuntimeError
                raise refused(f"Nothing could be fetched from {host!r}") from None

    def is_named(self, url):
        return url.raw_host.lower().rstrip(".") in self.hosts

    async def follow(self, url, share):
        first = url
        for _ in range(REDIRECTS + 1):
            if not self.is_named(url):
                self.check(url, first)
            async with session(self.is_named(url)) as http, http.get(url, allow_redirects=False) as response:
                to = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and to:
                    url = parsed(to, url)
                    if url is None:
                        raise refused(f"{first.host!r} redirects to no http(s) URL")
                elif response.status != 200:
                    raise refused(f"{first.host!r} answered {response.status}")
                else:
                    return await picture(response, first.host, share)
        raise refused(f"{first.host!r} redirects more than {REDIRECTS} times")

    def check(self, url, first):
        """Refuse a host that may not be asked, by what can be said of it without a look-up."""
        who = repr(first.host) + ("" if url is first else " redirects to a host that")
        if not self.public:
            which = "IMAGE_URLS does not name it" if self.hosts else "IMAGE_URLS is 'none' here"
            raise refused(f"{who} is not asked for pictures: {which}")
        if url.port not in PUBLIC_PORTS:
            raise refused(f"{who} is asked at ports 80 and 443 only")


def refused(why):
    return Refusal(
        400, "invalid_image_url", f"{why}. Send the picture as data: 'data:image/jpeg;base64,...'."
    )


def parsed(text, base=None):
    """The http(s) URL, from ``base`` where it is a part of one; None for what is none."""
    from yarl import URL

    if len(text) > 8192:  # a picture without its "data:", say; and yarl remembers the last 128 that it read
        return None
    try:
        # As it stands: a signed URL is valid in one spelling. Spaces and the like would break the request.
        url = URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)
        url = base.join(url) if base else url
        return url if url.scheme in ("http", "https") and url.host and url.port is not None else None
    except ValueError:
        return None


def session(anywhere):
    """A session for one request, without a proxy, which would resolve names for us."""
    import aiohttp

    def dial(info):
        if not anywhere and not is_public(info[4][0]):
            raise OSError("hidden")
        return socket.socket(*info[:3])

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            socket_factory=dial, ssl=certificates(), use_dns_cache=False, force_close=True
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "pixtral-sky"},
        trust_env=False,
    )


@functools.cache
def certificates():
    """Those of the machine, and certifi's: a machine may have none."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


async def picture(response, host, share):
    """The kind and the bytes of the picture in ``response``, which ends at the limit."""
    limit = min(EACH_BYTES, share.room() * 3 // 4)
    data, kind = bytearray(), None
    async for part in response.content.iter_any():
        if len(data) + len(part) > limit:
            raise refused(f"The picture from {host!r} has more than the {limit / 2**20:.3g} MiB it may have")
        share.take(-(-len(part) * 4 // 3))  # as base64
        data += part
        if len(data) >= 12 and not (kind := kind or KIND.match(data)):
            break
    if not kind:
        raise refused(f"What {host!r} sends is no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF picture")
    count("pictures_fetched", "Those of them that were fetched")
    return kind.lastgroup, bytes(data)
