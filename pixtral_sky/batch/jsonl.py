"""Read files of one JSON object a line, of any size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NoReturn

MIB = 2**20
# Four pictures of the largest download, as data: URLs, are 342 MiB.
MAX_LINE = 512 * MIB


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it says {name}")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, each cut after MAX_LINE + 1 bytes. Raises OSError."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)


def objects(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number, from 1, and the object of each line that is not blank, or what is wrong with the line."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, _object(line)


def _object(line: bytes) -> dict[str, Any] | str:
    if len(line) > MAX_LINE:
        return f"it is longer than {MAX_LINE // MIB} MiB"
    try:
        value = _DECODER.decode(line.rstrip().decode())
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except json.JSONDecodeError as error:
        return f"it is no JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:  # NaN, or a number of more digits than Python takes
        return f"it is no JSON ({error})"
    return value if isinstance(value, dict) else "it is no JSON object"
