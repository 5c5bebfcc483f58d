"""What a batch asks about: an ``Item`` for each request, of folders, globs, pictures, PDFs and manifests.

All of it is lazy. In memory are the names of the files of one folder, the matches of the globs, and of each
id its digest, so that none is given out twice: about 100 bytes an item.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby, islice
from pathlib import Path
from typing import Any

from pixtral_sky.batch import jsonl, manifest, openai_format, places, sources, tree
from pixtral_sky.batch.places import Place
from pixtral_sky.batch.sources import Source
from pixtral_sky.client import messages
from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.pictures import pdf
from pixtral_sky.pictures.picture import shown


@dataclass(frozen=True)
class Defaults:
    """What the command line said for all items; what an item says itself comes before it."""

    prompt: str
    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.7
    response_format: dict[str, Any] | None = None

    @property
    def as_json(self) -> bool:
        """Whether answers are to be JSON."""
        return (self.response_format or {}).get("type") in ("json_schema", "json_object")


@dataclass(frozen=True)
class Item(ABC):
    """One request. Its ``id`` is unique within a run, valid UTF-8, and the same in the next run.

    Pictures are read in ``body``, and not kept: an item is as large as the names in it, or as the line of
    the manifest that it is from, with the data: URLs in that.
    """

    id: str
    images: int  # how many pictures it has
    place: str = field(default="", kw_only=True)  # the line of a manifest: list.jsonl#line=17

    @abstractmethod
    def body(self, defaults: Defaults) -> dict[str, Any]:
        """The body of its request to /v1/chat/completions, without ``model`` and streaming. For threads.

        Reads, downloads and shrinks the pictures, each time that it is called. Raises PictureError, for an
        item that can never succeed.
        """

    @abstractmethod
    def result(self, document: dict[str, Any], seconds: float, as_json: bool) -> dict[str, Any]:
        """As the function of this name; ``as_json``: the answer was to be JSON."""

    @abstractmethod
    def failure(self, kind: str, message: str) -> dict[str, Any]:
        """The line of the errors file."""

    def tokens(self, body: dict[str, Any]) -> int:
        """Prompt tokens of its ``body`` but for words, as ``ask`` counts; 0 when they cannot be known."""
        tokens = [openai_format.picture_tokens(url) for url in openai_format.picture_urls(body)]
        return sum(tokens) + messages.FRAME_TOKENS if all(tokens) else 0


@dataclass(frozen=True)
class Bad:
    """An input that is no item, and that the run goes on without: ``reason`` is one line."""

    id: str  # unique within a run, among those of the items as well
    reason: str
    openai: bool = False  # whether it is reported in OpenAI's format
    place: str = field(default="", kw_only=True)  # as of an Item

    def failure(self, kind: str, message: str) -> dict[str, Any]:
        return (openai_format.error if self.openai else _failure)(self.id, kind, message)


@dataclass(frozen=True)
class Question(Item):
    """Pictures, and what a line of a manifest says of them."""

    sources: tuple[Source, ...]
    prompt: str | None = None
    system: str | None = None
    max_tokens: int | None = None

    def body(self, defaults: Defaults) -> dict[str, Any]:
        prompt = defaults.prompt if self.prompt is None else self.prompt
        system = defaults.system if self.system is None else self.system
        body: dict[str, Any] = {
            "messages": messages.messages([prompt, *(source.read() for source in self.sources)], system),
            "max_tokens": self.max_tokens or defaults.max_tokens,
            "temperature": defaults.temperature,
        }
        if defaults.response_format:
            body["response_format"] = defaults.response_format
        return body

    def result(self, document: dict[str, Any], seconds: float, as_json: bool) -> dict[str, Any]:
        choice = document["choices"][0]
        text = choice["message"].get("content") or ""
        return {
            "id": self.id,
            "images": [source.name or "data:" for source in self.sources],
            "answer": _value(text) if as_json else text,
            "finish_reason": choice.get("finish_reason"),
            "usage": document.get("usage"),
            "seconds": round(seconds, 3),
        }

    def failure(self, kind: str, message: str) -> dict[str, Any]:
        return _failure(self.id, kind, message)


@dataclass(frozen=True)
class Request(Item):
    """A line of OpenAI's format. What the command line says for all is not for it: it says all itself."""

    request: dict[str, Any] = field(repr=False)

    def body(self, defaults: Defaults) -> dict[str, Any]:  # noqa: ARG002
        return openai_format.prepared(self.request)

    def result(self, document: dict[str, Any], seconds: float, as_json: bool) -> dict[str, Any]:  # noqa: ARG002
        return openai_format.output(self.id, document)

    def failure(self, kind: str, message: str) -> dict[str, Any]:
        return openai_format.error(self.id, kind, message)


def result(
    item: Item, document: dict[str, Any], seconds: float, defaults: Defaults | None = None
) -> dict[str, Any]:
    """The output line for an item and the ``chat.completion`` that it got, in the format of its input.

    In the native format an answer that ``defaults`` wanted as JSON is JSON, unless it is none: then, as
    without ``defaults``, it is the text.
    """
    return item.result(document, seconds, defaults is not None and defaults.as_json)


def failure(item: Item | Bad, error: Exception | str) -> dict[str, Any]:
    """The line of the errors file for an item and what happened to it, or a Bad and its reason."""
    kind = type(error).__name__ if isinstance(error, Exception) else "BadInput"
    return item.failure(kind, str(error).encode(errors="replace").decode())


def _failure(id: str, kind: str, message: str) -> dict[str, Any]:  # noqa: A002
    return {"id": id, "error": {"type": kind, "message": message}}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # cut off, as a rule
        return text


def is_openai(inputs: Sequence[str]) -> bool:
    """Whether they are one file in the format of OpenAI's Batch API, or that on standard input.

    Its first line that is a JSON object decides. What is read of standard input is kept for ``walk``. Raises
    UsageError, as ``walk`` does.
    """
    if len(inputs) != 1 or not (inputs[0] == "-" or places.is_manifest(inputs[0])):
        return False
    given = places.of(inputs[0])
    return len(given) == 1 and given[0].kind == "manifest" and manifest.speaks_openai(given[0])


def walk(inputs: Sequence[str], *, per_request: int = 1) -> Iterator[Item | Bad]:
    """All items of the inputs, in an order and with ids that are the same each time.

    An input is a folder (see tree.py), a picture, a PDF (each page is a picture), a glob of these, a manifest
    (places.MANIFESTS, or "-": standard input) or, alone, a file in OpenAI's format. Of a folder or a glob is
    taken what by its extension is a picture or a PDF. Folders that a glob matches are walked, unless it has
    "**"; a glob that ends as manifests do takes those.

    ``per_request`` pictures become one item when they come one after the other from the same folder, from
    the same PDF, or from files and globs that are given: the shell makes files of globs.

    **Ids.** A file has its path relative to what its argument is in: ``photos/a.jpg`` for both ``photos`` and
    ``data/photos``. For a glob, and for ``.``, it is relative to the folder that these begin in. Where two
    files could get one id in that way (``2023/photos 2024/photos``, or a glob beside anything), all are
    relative to the deepest folder that all arguments are in. One id is then one file, and a file that comes
    twice is a Bad, ``photos/a.jpg#again=2``. Page 3 of a PDF is ``paper.pdf#page=3``. A name that is not
    UTF-8 becomes ``file:`` and the path with its odd bytes in percent-encoding. With ``per_request`` the
    first picture and the count name an item, ``photos/a.jpg#count=4`` or ``paper.pdf#page=1&count=4``: when
    files come or go between two runs, it may stand for others.

    A line of a manifest has its ``id``; without one its first picture as it is given there, a URL without
    what may be secret in it; and for a data: URL the line, ``list.jsonl#line=17``. The line is also the id of
    what is Bad, where it has none of its own that is still free.

    Raises UsageError, at once, for an argument that leads to nothing, and for a file in OpenAI's format
    beside other inputs.
    """
    given = [place for argument in inputs for place in places.of(argument)]
    manifests = [place for place in given if place.kind == "manifest"]
    if sum(place.path == "-" for place in manifests) > 1:
        raise UsageError("Standard input ('-') can be one manifest only.")
    openai = False
    for place in manifests:
        openai = manifest.speaks_openai(place)
        if openai and len(given) > 1:
            raise UsageError(
                f"{manifest.called(place)} is in OpenAI's format, and other inputs are given beside it.",
                "Give it alone.",
            )
    found = chain.from_iterable(_found(place, openai) for place in places.based(given))
    return _unique(_grouped(found, per_request))


_Found = tuple[str, Source]  # and the folder or the like that it is from: others are not asked about with it


def _found(place: Place, openai: bool) -> Iterator[_Found | Item | Bad]:
    if place.kind == "manifest":
        yield from _lines_of(place, openai)
    elif place.kind == "folder":
        start = places.relative(place.path, place.base)
        for inner, error in tree.files(place.path, places.is_wanted):
            path, name = f"{place.path}/{inner}", places.name(f"{start}/{inner}".strip("/"))
            if error:
                yield Bad(name or ".", f"{shown(path)} cannot be read: {places.why(error)}.")
            else:
                yield from _pictures(path, name, path.rpartition("/")[0])
    else:
        for path in place.matches or [place.path]:
            if place.kind == "file" or places.is_wanted(path):
                yield from _pictures(path, places.name(places.relative(path, place.base)), "")
            else:
                yield from _found(Place("folder", path, place.base), openai)


def _pictures(path: str, name: str, group: str) -> Iterator[_Found | Bad]:
    """The picture, or the pages of the PDF."""
    if not places.is_pdf(path):
        yield group, Source(name, path)
        return
    try:
        pages = pdf.pages(path)
    except PictureError as error:
        yield Bad(name, str(error))
        return
    for page in range(1, pages + 1):
        yield path, Source(f"{name}#page={page}", path, page)


def _grouped(found: Iterable[_Found | Item | Bad], most: int) -> Iterator[Item | Bad]:
    """Pictures made items, of up to ``most`` that follow each other and are of one group."""
    for group, entries in groupby(found, lambda entry: entry[0] if isinstance(entry, tuple) else None):
        if group is None:
            yield from (entry for entry in entries if not isinstance(entry, tuple))
            continue
        pictures = (entry[1] for entry in entries if isinstance(entry, tuple))
        while some := tuple(islice(pictures, most)):
            first = some[0]
            many = f"{'&' if first.page else '#'}count={len(some)}" if most > 1 else ""
            yield Question(f"{first.name}{many}", len(some), some)


def _unique(entries: Iterable[Item | Bad]) -> Iterator[Item | Bad]:
    """With every id once: what has one for the second time is Bad, and gets another."""
    seen: set[int] = set()

    def is_new(name: str) -> bool:
        before = len(seen)
        seen.add(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big"))
        return len(seen) > before

    for entry in entries:
        if is_new(entry.id):
            yield entry
            continue
        others = (f"{entry.id}#again={number}" for number in count(2))
        other = next(name for name in chain([entry.place] if entry.place else [], others) if is_new(name))
        if isinstance(entry, Bad):
            yield replace(entry, id=other)
        elif entry.place:
            what = f'the id "{shown(entry.id)}" is given twice'
            yield Bad(other, f"{shown(entry.place)}: {what}.", isinstance(entry, Request))
        else:
            yield Bad(other, f"{shown(entry.id)} is given twice.")


def _lines_of(place: Place, openai: bool) -> Iterator[Item | Bad]:
    called = manifest.called(place)
    name = "-" if place.path == "-" else places.name(places.relative(place.path, place.base))
    folder = "." if place.path == "-" else str(Path(place.path).parent)
    try:
        for number, entry in jsonl.objects(manifest.lines(place)):
            where, said = f"{name}#line={number}", f"{called}, line {number}"
            if isinstance(entry, str):
                yield Bad(where, f"{said}: {entry}.", openai)
            elif openai:
                yield _request(entry, where, said)
            else:
                yield _question(entry, where, said, folder)
    except OSError as error:
        yield Bad(name, f"{called} cannot be read to its end: {places.why(error)}.", openai)


def _request(entry: dict[str, Any], where: str, said: str) -> Item | Bad:
    name, body = entry.get("custom_id"), entry.get("body")
    if problem := openai_format.problem(entry):
        name = name if isinstance(name, str) and name and openai_format.is_text(name) else where
        return Bad(name, f"{said}: {problem}.", openai=True, place=where)
    assert isinstance(name, str)
    assert isinstance(body, dict)
    return Request(name, len(list(openai_format.picture_urls(body))), body, place=where)


def _question(entry: dict[str, Any], where: str, said: str, folder: str) -> Item | Bad:
    name = entry.get("id")
    if problem := manifest.problem(entry):
        name = name if isinstance(name, str) and name and openai_format.is_text(name) else where
        return Bad(name, f"{said}: {problem}.", place=where)
    pictures = tuple(sources.given(picture, folder) for picture in entry["images"])
    return Question(
        name or pictures[0].name or where,
        len(pictures),
        pictures,
        prompt=entry.get("prompt"),
        system=entry.get("system"),
        max_tokens=entry.get("max_tokens"),
        place=where,
    )
