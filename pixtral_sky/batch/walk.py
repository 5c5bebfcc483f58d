"""Every item of the inputs of a batch: folders, globs, pictures, PDFs and manifests.

All of it is lazy. In memory are the names of the files of one folder, the matches of the globs, and of each
id its digest, so that none is given out twice: about 100 bytes an item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, groupby, islice
from pathlib import Path
from typing import Any

from pixtral_sky.batch import inputs, jsonl, manifest, openai_format
from pixtral_sky.batch.inputs import Input, id_of, relative
from pixtral_sky.batch.items import Bad, Item, Question, Request
from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.pictures import pdf
from pixtral_sky.pictures.source import Source
from pixtral_sky.text import is_unicode, os_reason, shown


def is_openai(arguments: Sequence[str]) -> bool:
    """Whether they are one file in the format of OpenAI's Batch API, or that on standard input.

    Its first line that is a JSON object decides. What is read of standard input is kept for ``walk``. Raises
    UsageError, as ``walk`` does.
    """
    if len(arguments) != 1 or not (arguments[0] == "-" or inputs.is_manifest(arguments[0])):
        return False
    given = inputs.parse(arguments[0])
    return len(given) == 1 and given[0].kind == "manifest" and manifest.speaks_openai(given[0])


def walk(arguments: Sequence[str], *, per_request: int = 1) -> Iterator[Item | Bad]:
    """All items that the arguments lead to, in an order and with ids that are the same each time.

    An argument is a folder (see ``files_in``), a picture, a PDF (each page is a picture), a glob of these, a
    manifest (MANIFESTS, or "-": standard input) or, alone, a file in OpenAI's format. Of a folder or a glob
    those files are taken that are pictures or PDFs by their extension. Folders that a glob matches are
    walked, unless it has "**"; a glob that ends as manifests do takes those.

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
    found = chain.from_iterable(_found(each, openai) for each in inputs.with_common_base(given))
    return _unique(_grouped(found, per_request))


# A picture, and the group that it is from, such as its folder: those of one group may share a request.
_Found = tuple[str, Source]


def _found(given: Input, openai: bool) -> Iterator[_Found | Item | Bad]:
    if given.kind == "manifest":
        yield from _lines_of(given, openai)
    elif given.kind == "folder":
        start = relative(given.path, given.base)
        for inner, error in inputs.files_in(given.path):
            path, name = f"{given.path}/{inner}", id_of(f"{start}/{inner}".strip("/"))
            if error:
                yield Bad(name or ".", f"{shown(path)} cannot be read: {os_reason(error)}.")
            else:
                yield from _pictures(path, name, path.rpartition("/")[0])
    else:
        for path in given.matches or [given.path]:
            if given.kind == "file" or inputs.is_wanted(path):
                yield from _pictures(path, id_of(relative(path, given.base)), "")
            else:
                yield from _found(Input("folder", path, given.base), openai)


def _pictures(path: str, name: str, group: str) -> Iterator[_Found | Bad]:
    """The picture, or the pages of the PDF."""
    if not inputs.is_pdf(path):
        yield group, Source(path, name=name)
        return
    try:
        pages = pdf.pages(path)
    except PictureError as error:
        yield Bad(name, str(error))
        return
    for page in range(1, pages + 1):
        yield path, Source(path, page, f"{name}#page={page}")


def _grouped(found: Iterable[_Found | Item | Bad], most: int) -> Iterator[Item | Bad]:
    """Make one item of up to ``most`` pictures that follow each other and are of one group."""
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
    """Replace an entry whose id was given before by a Bad with another id."""
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
        if isinstance(entry, Bad):
            yield replace(entry, id=other)
        elif entry.line:
            what = f'the id "{shown(entry.id)}" is given twice'
            yield Bad(other, f"{shown(entry.line)}: {what}.", isinstance(entry, Request))
        else:
            yield Bad(other, f"{shown(entry.id)} is given twice.")


def _lines_of(given: Input, openai: bool) -> Iterator[Item | Bad]:
    called = manifest.called(given)
    name = "-" if given.path == "-" else id_of(relative(given.path, given.base))
    folder = "." if given.path == "-" else str(Path(given.path).parent)
    try:
        for number, entry in jsonl.objects(manifest.lines(given)):
            line, said = f"{name}#line={number}", f"{called}, line {number}"
            if isinstance(entry, str):
                yield Bad(line, f"{said}: {entry}.", openai)
            elif openai:
                yield _request(entry, line, said)
            else:
                yield _question(entry, line, said, folder)
    except OSError as error:
        yield Bad(name, f"{called} cannot be read to its end: {os_reason(error)}.", openai)


def _request(entry: dict[str, Any], line: str, said: str) -> Item | Bad:
    if problem := openai_format.problem(entry):
        return Bad(_id(entry.get("custom_id")) or line, f"{said}: {problem}.", openai=True, line=line)
    body = entry["body"]
    return Request(entry["custom_id"], len(list(openai_format.picture_urls(body))), body, line=line)


def _question(entry: dict[str, Any], line: str, said: str, folder: str) -> Item | Bad:
    if problem := manifest.problem(entry):
        return Bad(_id(entry.get("id")) or line, f"{said}: {problem}.", line=line)
    pictures = tuple(inputs.source(picture, folder) for picture in entry["images"])
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
    """The id that a faulty line of a manifest has itself, if it can be used; else ""."""
    return given if isinstance(given, str) and is_unicode(given) else ""
