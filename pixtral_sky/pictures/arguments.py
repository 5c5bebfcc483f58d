"""The arguments of ``ask`` and ``tokens`` in their order: words, and sources of pictures."""

from __future__ import annotations

import glob
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pixtral_sky.errors import PictureError, UsageError
from pixtral_sky.pictures import kinds, pdf
from pixtral_sky.pictures.names import check_scheme, is_url, local, spellings
from pixtral_sky.pictures.picture import all_of, directory_error
from pixtral_sky.pictures.source import Source, read_stdin
from pixtral_sky.text import counted, is_unicode, natural, os_reason, shown

DEFAULT_QUESTION = "Describe this image in detail please."
WORDS_OF_A_NAME = 2  # at most, of a file that does not exist
BEFORE_A_WORD, BEHIND_A_WORD = (
    "\"'`([{<\u201c\u201e\u2018\u00ab",
    "\"'`)]}>\u201d\u201c\u2019\u00bb.,;:!?\u2026",
)
WEB = r"([a-z0-9-]+\.)+[a-z]{2,}(:[0-9]+)?/\S"  # a URL without its scheme
TRIED = 32  # pictures, at most, that are read to see what else is wrong


def parse(
    arguments: Sequence[str], images: Sequence[str] = (), *, notify: Callable[[str], None] = lambda _: None
) -> list[str | Source]:
    """What each argument is, after all ``images``, which are never words.

    DEFAULT_QUESTION comes first when there are pictures and no words. An argument is, by the first of these
    that fits:

    - ``-``: what is on standard input, which is read: a picture, or words when it is text
    - ``data:...``, ``http://...`` and ``https://...`` without whitespace: a picture
    - another URL without whitespace: an error, but for ``file:///...``, which is a path
    - the path of a file: a picture, or all pages of a PDF; ``~`` is the home directory
    - ``a.pdf#page=3``: a page
    - a glob that matches files: those, in natural order (a2 before a10); without those that are no pictures
      by their names, if others are
    - text that looks like a path: an error, as a mistyped path is no question
    - words

    One word looks like a path when it has a slash, begins with ``.`` or ``~``, or ends as a file does
    (photo.jpg). So do two that end so (my photo.jpg), and more that begin as a path as well (./my best
    photo.jpg). More of them are a sentence: What is in photo.jpg.

    A path may have whitespace around it, and then quotes, as one that is pasted from elsewhere.

    ``notify`` gets a line for the files that a sentence names, which stay words, and for those that a glob
    matches and that are left out.

    Raises UsageError when there is nothing to ask, for an empty argument, and for a second ``-``;
    PictureError, one for all, for a directory, for what looks like a path and leads to nothing, and when
    nothing is on standard input. Only when there is such an error are the other pictures read, so that it
    names all that is wrong.
    """
    found = [*_each(images, notify, may_be_words=False), *_each(arguments, notify)]
    if not found:
        raise UsageError(
            "There is nothing to ask.", 'Try: pixtral-sky ask "What is in this picture?" photo.jpg'
        )
    _check_stdin([part for _, part in found])
    if any(isinstance(part, PictureError) for _, part in found):
        raise all_of(list(_all_errors([part for _, part in found])))
    parts = [
        _stdin() if part == Source("-") else part for _, part in found if not isinstance(part, PictureError)
    ]
    _notify_of_files_in_words(found, notify)
    if not any(isinstance(part, str) for part in parts):
        parts.insert(0, DEFAULT_QUESTION)
    return parts


def sources(
    arguments: Sequence[str], *, notify: Callable[[str], None] = lambda _: None
) -> list[tuple[str, Source | PictureError]]:
    """The pictures of arguments that are never words, each with its name in messages.

    For an argument that leads to nothing it is the error. Raises UsageError as ``parse`` does.
    """
    found = list(_each(arguments, notify, may_be_words=False))
    _check_stdin([part for _, part in found])
    return [
        (part.label if isinstance(part, Source) else argument, part)
        for argument, part in found
        if not isinstance(part, str)
    ]


def _ends_as_file(text: str) -> bool:
    """Whether ``text`` ends as the name of a picture does, or of what is mistaken for one."""
    path, _ = pdf.split(text)
    return pdf.is_picture_name(path) or Path(path).suffix.lower() in kinds.EXTENSIONS


def _notify_of_files_in_words(
    found: Sequence[tuple[str, str | Source | PictureError]], notify: Callable[[str], None]
) -> None:
    sentences = [part for _, part in found if isinstance(part, str)]
    given = {part.location for _, part in found if isinstance(part, Source)}
    files_in = {words: _files_in(words) for words in sentences}
    named = dict.fromkeys(file for files in files_in.values() for file in files)
    if files := [file for file in named if _file(file) not in given]:
        notify(f"Taken as words, not as pictures: {shown(', '.join(files))}. {_on_its_own(files)}")
    for words, there in files_in.items():
        if _ends_as_file(words) and not there:
            notify(f"Taken as words, as there is no such file: {words}")


def _on_its_own(files: Sequence[str]) -> str:
    """The advice to take the ``files`` out of a sentence."""
    return f"Give each as an argument of its own: {shown(shlex.join(files))}"


def _files_in(words: str) -> list[str]:
    """The words of a sentence that are the paths of pictures, or of what is mistaken for one, that exist."""
    found = (word.lstrip(BEFORE_A_WORD).rstrip(BEHIND_A_WORD) for word in words.split())
    return list(dict.fromkeys(word for word in found if _is_file(word)))


def _file(word: str) -> str:
    """The path that a word may be, without a page."""
    return os.path.expanduser(pdf.file_of(word))  # noqa: PTH111


def _is_file(word: str) -> bool:
    if not _may_be_path(word) or not _ends_as_file(pdf.file_of(word)):
        return False
    return os.path.isfile(_file(word))  # noqa: PTH113 (Path's raises errors)


def _each(
    arguments: Sequence[str], notify: Callable[[str], None], may_be_words: bool = True
) -> Iterator[tuple[str, str | Source | PictureError]]:
    """Each argument with what it is, perhaps several times."""
    for argument in arguments:
        try:
            for part in _parse(argument, notify, may_be_words):
                yield argument, part
        except PictureError as error:
            yield argument, error


def _check_stdin(parts: Sequence[str | Source | PictureError]) -> None:
    if parts.count(Source("-")) > 1:
        raise UsageError("Standard input ('-') can be given once only.")


def _all_errors(parts: Sequence[str | Source | PictureError]) -> Iterator[PictureError]:
    """The errors, and those of reading the pictures of this machine, in the order of ``parts``."""
    tried = 0
    for part in parts:
        if isinstance(part, PictureError):
            yield part
        elif isinstance(part, Source) and part.location != "-" and not part.is_url and tried < TRIED:
            tried += 1
            try:
                part.read()
            except PictureError as error:
                yield error


def _stdin() -> str | Source:
    """What is on standard input: words when it is text, unless that is of a kind that draws something."""
    data = read_stdin()
    if not data.strip():
        raise PictureError("Standard input is empty.", "'-' is the picture or the words that are piped in.")
    if b"\0" not in data and not kinds.of(data[: kinds.HEAD], ""):
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            pass
    return Source("-", data=data)


def _parse(argument: str, notify: Callable[[str], None], may_be_words: bool) -> Sequence[str | Source]:
    text = spellings(argument)[-1]
    if not text.strip():
        raise UsageError("An empty argument is neither words nor a picture.")
    one_word = not re.search(r"\s", text)
    if argument == "-" or re.match(r"data:\S", argument, re.IGNORECASE):
        return [Source(argument)]
    if one_word and is_url(text):
        return [Source(text)]
    if one_word:
        check_scheme(text)

    reason = "no such file"
    for spelling in spellings(argument):
        path, page = pdf.split(_path(spelling))
        try:
            mode = Path(path).stat().st_mode
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: a NUL
            reason = os_reason(error)
            continue
        if stat.S_ISDIR(mode):
            raise directory_error(spelling)
        return _pictures(path, page)
    pdf.check_page(_path(text))

    looks_like_path = _may_be_path(text) and _looks_like_path(text, argument)
    if _may_be_path(text) and glob.has_magic(text):
        # "**" in a sentence must not search the whole disk.
        recursive = looks_like_path or _ends_as_file(text)
        found = glob.glob(_path(text), recursive=recursive)  # noqa: PTH207 (Path.glob takes no absolute path)
        # The words "Why?" match a picture Why1.jpg, but not a file that happens to be called Why1.
        files = [f for f in found if Path(f).is_file() and (looks_like_path or _ends_as_file(f))]
        pictures = [file for file in files if pdf.is_picture_name(file)]
        if pictures and (left_out := len(files) - len(pictures)):
            notify(f"Left out of {shown(text)}, being no pictures by name: {counted(left_out, 'file')}")
        if files:
            return [part for file in sorted(pictures or files, key=natural) for part in _matched(file)]
        reason = "nothing matches"

    if looks_like_path or not may_be_words:
        # One word that ends as files do is never a question.
        may_be_words = may_be_words and not (one_word and _ends_as_file(text))
        hint = "If these are words, add another one." if may_be_words else ""
        if not one_word and (files := _files_in(text)):
            hint = _on_its_own(files)
        elif one_word and reason == "no such file" and re.match(WEB, text, re.IGNORECASE):
            hint = f"If it is on the web: https://{shown(text)}"
        raise PictureError(f"{shown(text)}: {reason}.", hint)
    if not is_unicode(argument):
        raise UsageError(f"The words {shown(argument)!r} are not valid UTF-8.")
    return [argument]


def _may_be_path(text: str) -> bool:
    """Whether a path can have this line, and this length."""
    return not re.search(r"[\0\n]", text) and len(text) <= 4096


def _path(text: str) -> str:
    # Path.expanduser would fail for a user who does not exist.
    return os.path.expanduser(local(text)) if _may_be_path(text) else text  # noqa: PTH111


def _looks_like_path(text: str, argument: str) -> bool:
    """See ``parse``. A space at the end of the ``argument`` makes two words of "and/or "."""
    if _ends_as_file(text):
        return len(text.split()) <= WORDS_OF_A_NAME or text.startswith(("/", "./", "../", "~/"))
    return not re.search(r"\s", argument) and ("/" in text or text.startswith(("~", ".")))


def _pictures(path: str, page: int = 0) -> list[Source]:
    """A picture, a page of a PDF, or all its pages."""
    if page or not pdf.is_pdf(path):
        return [Source(path, page)]
    return [Source(path, number) for number in range(1, pdf.pages(path) + 1)]


def _matched(path: str) -> list[Source]:
    """The same for one of many that a glob matches: reading a broken PDF says what is wrong with it alone."""
    try:
        return _pictures(path)
    except PictureError:
        return [Source(path, 1)]
