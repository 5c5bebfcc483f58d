"""What people give as the name of a file: in quotes, with a space at its end, as a URL."""

from __future__ import annotations

import os
import re
import shlex
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from pixtral_sky.errors import PictureError
from pixtral_sky.text import shown

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://\S", re.IGNORECASE)
# By the scheme of a URL that is not read here, what leads to its file.
_HELP = {
    "s3": "Copy it here: aws s3 cp {url} .",
    "gs": "Copy it here: gcloud storage cp {url} .",
    "az": "Copy it here: az storage blob download --account-name ACCOUNT -c {host} -n {path} -f {file}",
    "hf": "Give its address on the web: https://huggingface.co/{repo}/resolve/main/{inner}",
    "ftp": "Copy it here: curl -O {url}",
    "sftp": "Copy it here: scp {host}:/{path} .",
}


def spellings(text: str) -> list[str]:
    """``text``, then what is left of it without whitespace around it, and without quotes around that."""
    found = [text]
    for each in (text.strip(), _unquoted(text.strip())):
        if each and each != found[-1]:
            found.append(each)
    return found


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def local(text: str) -> str:
    """The path in a file: URL (RFC 8089), percent-decoded; any other ``text`` as it is.

    Raises PictureError for a file of another host.
    """
    if not (found := re.match(r"file:(//([^/]*))?(?=/)", text, re.IGNORECASE)):
        return text
    host = found[2] or ""
    path = os.fsdecode(unquote_to_bytes(text[found.end() :]))
    if host.lower() not in ("", "localhost"):
        copy = f"scp {shlex.quote(f'{host}:{path}')} ."
        raise PictureError(f"{shown(text)} is a file of another machine.", f"Copy it here: {copy}")
    return path


def is_url(text: str) -> bool:
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def bare(url: str) -> str:
    """``url`` without user, password, query and fragment, which may be secrets; "" when it is malformed."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # not a number when a password with a slash is taken for it
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_scheme(text: str) -> None:
    """Raise PictureError for a URL that is not read here, with the command that fetches it."""
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme in ("", "http", "https", "file"):
        return
    url = bare(text)
    what = f"{shown(url or f'{scheme}://...')} is not read here."
    if not url or scheme not in _HELP:
        raise PictureError(what, "Copy it here, and give the file. http(s):// and file:// are read.")
    parts = urlsplit(url)
    path = parts.path.lstrip("/")
    names = [parts.netloc, *path.split("/")]
    count = 3 if names[0] in ("datasets", "spaces") else 2  # names of a repository on the Hub
    values = {
        "url": url,
        "host": parts.netloc,
        "path": path,
        "file": names[-1],
        "repo": "/".join(names[:count]),
        "inner": "/".join(names[count:]),
    }
    quoted = {name: shlex.quote(shown(value)) for name, value in values.items()}
    raise PictureError(what, _HELP[scheme].format(**quoted))
