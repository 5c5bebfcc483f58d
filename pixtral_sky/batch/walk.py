"""Every item of the inputs of a batch: folders, globs, pictures, PDFs and manifests.

It is lazy. Memory holds the names of one folder, the matches of the globs, and a digest of each id to find
duplicates: about 100 bytes an item.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, groupby, islice
from typing import Any

from pixtral_sky.batch import inputs, jsonl, manifest, openai_format
from pixtral_sky.batch.inputs import Input, Walked, id_of, relative
from pixtral_sky.batch.items import BadInput, Item, Question, Request
from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.pictures import pdf
from pixtral_sky.pictures.source import Source
from pixtral_sky.text import is_unicode, os_reason, shown


def is_openai(arguments: Sequence[str]) -> bool:
    """Whether they are one file, or standard input, in the format of OpenAI's Batch API.

    Its first line that is a JSON object decides. What is read of standard input is kept for ``walk``. Raises
    UsageError as ``walk`` does.
    """
    if len(arguments) != 1 or not (arguments[0] == "-" or inputs.is_manifest(arguments[0])):
        return False
    given = inputs.parse(arguments[0])
    return len(given) == 1 and given[0].kind == "manifest" and manifest.speaks_openai(given[0])


def walk(
    arguments: Sequence[str], *, per_request: int = 1, walked: Walked | None = None
) -> Iterator[Item | BadInput]:
    """All items that the arguments lead to, in the same order and with the same ids each time.

    An argument is a folder (see ``files_in``), a picture, a PDF (each page is a picture), a glob of these, a
    manifest (MANIFESTS, or "-": standard input) or, alone, a file in OpenAI's format. Folders and globs give
    pictures and PDFs, by their extension. Folders that a glob matches are walked, unless it has "**"; a glob
    that ends as manifests do gives manifests.

    ``per_request`` pictures become one item when they follow each other in one folder, one PDF, or the given
    files and globs (the shell makes files of globs).

    **Ids.** A file has its path relative to the parent of its argument: ``photos/a.jpg`` for both ``photos``
    and ``data/photos``. For a glob, and for ``.``, it is relative to the folder in which these begin. Where
    two files could get the same id (``2023/photos 2024/photos``, or a glob beside anything), all paths are
    relative to the deepest folder that holds all arguments. A file that comes twice is a BadInput,
    ``photos/a.jpg#again=2``. Page 3 of a PDF is ``paper.pdf#page=3``. A name that is not UTF-8 becomes
    ``file:`` and the path with its other bytes percent-encoded. With ``per_request`` an item has the name of
    its first picture and the count, ``photos/a.jpg#count=4`` or ``paper.pdf#page=1&count=4``; it may mean
    other pictures once files come or go.

    A line of a manifest has its ``id``; without one, its first picture as given there, a URL without its
    secrets; for a data: URL, the line, ``list.jsonl#line=17``. A BadInput whose own id is missing or taken
    has the line, too.

    At its end, ``walked`` says what was found.

    Raises, at once, PictureError for an argument that leads to nothing, and UsageError for a file in OpenAI's
    format beside other inputs.
    """
    given = [each for argument in arguments for each in inputs.parse(argument)]
    manifests = [each for each in given if each.kind == "manifest"]
    if sum(each.path == "-" for each in manifests) > 1:
        raise UsageError("Standard input ('-') can be one manifest only.")
    openai = False
    for each in manifests:
        openai = manifest.speaks_openai(each)
        if openai and len(given) > 1:
            raise UsageError(
                f"{manifest.called(each)} is in OpenAI's format, and other inputs are given beside it.",
                "Give it alone.",
            )
    skipped: Counter[str] = Counter()
    found = chain.from_iterable(_found(each, openai, skipped) for each in inputs.with_common_base(given))
    return _told(_unique(_grouped(found, per_request)), skipped, walked or Walked())


def _told(
    entries: Iterator[Item | BadInput], skipped: Counter[str], walked: Walked
) -> Iterator[Item | BadInput]:
    items = 0
    for items, entry in enumerate(entries, 1):  # noqa: B007 (the last number is the count)
        yield entry
    walked.items, walked.skipped = items, skipped


# A group, such as a folder, whose pictures may share a request; and a picture.
_Found = tuple[str, Source]


def _found(given: Input, openai: bool, skipped: Counter[str]) -> Iterator[_Found | Item | BadInput]:
    if given.kind == "manifest":
        yield from _lines_of(given, openai)
    elif given.kind == "folder":
        start = relative(given.path, given.base)
        for inner, error in inputs.files_in(given.path, skipped):
            path, name = f"{given.path}/{inner}", id_of(f"{start}/{inner}".strip("/"))
            if error:
                yield BadInput(name or ".", f"{shown(path)} cannot be read: {os_reason(error)}.")
            else:
                yield from _pictures(path, name, path.rpartition("/")[0])
    else:
        skipped.update(map(inputs.kind, given.skipped))
        for path in given.matches or [given.path]:
            if given.kind == "file" or pdf.is_picture_name(path):
                yield from _pictures(path, id_of(relative(path, given.base)), "")
            else:
                yield from _found(Input("folder", path, given.base), openai, skipped)


def _pictures(path: str, name: str, group: str) -> Iterator[_Found | BadInput]:
    """The picture, or the pages of the PDF."""
    if not pdf.is_pdf(path):
        yield group, Source(path, name=name)
        return
    try:
        pages = pdf.pages(path)
    except PictureError as error:
        yield BadInput(name, str(error))
        return
    for page in range(1, pages + 1):
        yield path, Source(path, page, f"{name}#page={page}")


def _grouped(found: Iterable[_Found | Item | BadInput], most: int) -> Iterator[Item | BadInput]:
    """Make one item of up to ``most`` pictures that follow each other in one group."""
    for group, entries in groupby(found, lambda entry: entry[0] if isinstance(entry, tuple) else None):
        if group is None:
            yield from (entry for entry in entries if not isinstance(entry, tuple))
            continue
        pictures = (entry[1] for entry in entries if isinstance(entry, tuple))
        while some := tuple(islice(pictures, most)):
            first = some[0]
            many = f"{'&' if first.page else '#'}count={len(some)}" if most > 1 else ""
            yield Question(f"{first.name}{many}", len(some), some)


def _unique(entries: Iterable[Item | BadInput]) -> Iterator[Item | BadInput]:
    """Replace duplicates of an id by a BadInput with another id."""
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
        other = next(name for name in chain([entry.line] if entry.line else [], others) if is_new(name))
        if isinstance(entry, BadInput):
            yield replace(entry, id=other)
        elif entry.line:
            what = f'the id "{shown(entry.id)}" is given twice'
            yield BadInput(other, f"{shown(entry.line)}: {what}.", isinstance(entry, Request))
        else:
            yield BadInput(other, f"{shown(entry.id)} is given twice.")


def _lines_of(given: Input, openai: bool) -> Iterator[Item | BadInput]:
    called = manifest.called(given)
    name = "-" if given.path == "-" else id_of(relative(given.path, given.base))
    folder = "" if given.path == "-" else given.path.rpartition("/")[0]
    try:
        for number, entry in jsonl.objects(manifest.lines(given)):
            line, said = f"{name}#line={number}", f"{called}, line {number}"
            if isinstance(entry, str):
                yield BadInput(line, f"{said}: {entry}.", openai)
            elif openai:
                yield _request(entry, line, said)
            else:
                yield _question(entry, line, said, folder)
    except OSError as error:
        yield BadInput(name, f"{called} cannot be read to its end: {os_reason(error)}.", openai)


def _request(entry: dict[str, Any], line: str, said: str) -> Item | BadInput:
    if problem := openai_format.problem(entry):
        return BadInput(_id(entry.get("custom_id")) or line, f"{said}: {problem}.", openai=True, line=line)
    body = entry["body"]
    return Request(entry["custom_id"], len(list(openai_format.pictures(body))), body, line=line)


def _question(entry: dict[str, Any], line: str, said: str, folder: str) -> Item | BadInput:
    if problem := manifest.problem(entry):
        return BadInput(_id(entry.get("id")) or line, f"{said}: {problem}.", line=line)
    try:
        pictures = tuple(inputs.source(picture, folder) for picture in entry["images"])
    except PictureError as error:
        return BadInput(_id(entry.get("id")) or line, f"{said}: {error}", line=line)
    return Question(
        entry.get("id") or pictures[0].name or line,
        len(pictures),
        pictures,
        prompt=entry.get("prompt"),
        system=entry.get("system"),
        max_tokens=entry.get("max_tokens"),
        line=line,
    )


def _id(given: object) -> str:
    """The id that an invalid line of a manifest has, if it can be used; else ""."""
    return given if isinstance(given, str) and is_unicode(given) else ""
