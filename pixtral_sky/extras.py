"""The commands that install optional packages, into this very installation.

This package is on no index from which "pixtral-sky[heic]" could come. So pip is told the packages
themselves, and uv's tools, which it makes anew each time, where this package came from.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "pixtral-sky"
CLOUDS = "(or [gcp], [azure], [kubernetes], [slurm]: your cloud)"


def install(extra: str) -> str:
    """The command that installs the packages of an ``extra`` in pyproject.toml."""
    if not (wanted := _required(extra)):  # no metadata: run from a folder that was not installed
        return f'pip install -e ".[{extra}]"'
    prefix = Path(sys.prefix)
    programs: list[str] = []  # packages whose programs are called by their names: `sky`, `aws`
    if any(each.startswith("skypilot") for each in wanted):
        programs = ["skypilot", *(["awscli"] if extra == "aws" else [])]
        if not find_spec("pip"):
            wanted.append("pip")  # SkyPilot makes a wheel of itself with it; uv's environments have none
    if (receipt := prefix / "uv-receipt.toml").is_file():
        return _command("uv", "tool", "install", *_tool(receipt, extra, programs, "pip" in wanted))
    if (prefix / "pipx_metadata.json").is_file():
        shown = ["--include-apps"] if programs else []
        return _command("pipx", "inject", *shown, prefix.name, *wanted, *programs[1:])
    return _command(*_pip(prefix), *wanted)


def install_skypilot(cloud: str = "") -> str:
    """The command that installs SkyPilot with the SDK of ``cloud``, an extra's name; empty: the user's."""
    return install(cloud) if cloud else f"{install('aws')} {CLOUDS}"


def skypilot() -> str:
    """The version of SkyPilot that this package requires; empty where the package has no metadata."""
    return next((each.removeprefix("skypilot==") for each in _required("sky")), "")


def _command(*words: str) -> str:
    return " ".join(map(shlex.quote, words))


def _pip(prefix: Path) -> Iterator[str]:
    """The words that install into ``prefix``."""
    if find_spec("pip"):
        of_the_shell = shutil.which("pip")
        here = of_the_shell and Path(of_the_shell).parent == Path(sys.executable).parent
        yield from ["pip"] if here else [sys.executable, "-m", "pip"]
        yield "install"
    else:
        yield from ("uv", "pip", "install")
        if os.environ.get("VIRTUAL_ENV") != str(prefix):
            yield from ("--python", str(prefix))


def _tool(receipt: Path, extra: str, programs: Iterable[str], pip: bool) -> Iterator[str]:
    """The arguments that make uv's tool anew, as its ``receipt`` has it, with another extra.

    The ``programs`` of these packages are linked beside its own.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    tool = tomllib.loads(receipt.read_text())["tool"]
    if python := tool.get("python"):
        yield from ("--python", python)
    this = {}
    linked = {each.get("from", NAME) for each in tool.get("entrypoints", ())} - {NAME} | {*programs}
    for each in tool["requirements"]:
        if each["name"] == NAME:
            this = each
        elif _requirement(each) not in linked:
            yield from ("--with", _requirement(each))
    if pip:
        yield from ("--with", "pip")
    if linked:
        yield from ("--with-executables-from", ",".join(sorted(linked)))
    yield from _from_source({**this, "extras": sorted({*this.get("extras", ()), extra})})


def _from_source(given: dict[str, Any]) -> Iterator[str]:
    """The arguments for a requirement of a receipt that is this package."""
    extras = ",".join(given["extras"])
    if editable := given.get("editable"):
        yield from ("--editable", f"{editable}[{extras}]")
    else:
        yield _requirement(given)


def _requirement(given: dict[str, Any]) -> str:
    """A requirement of a receipt, as on the command line."""
    extras = given.get("extras")
    name = f"{given['name']}[{','.join(extras)}]" if extras else str(given["name"])
    if git := given.get("git"):
        # The branch, tag or commit is in the query: https://host/repository?rev=v1
        address, _, revision = git.partition("?rev=")
        return f"{name} @ git+{address}{f'@{revision}' if revision else ''}"
    if path := given.get("path") or given.get("directory") or given.get("editable"):
        return f"{name} @ {Path(path).as_uri()}"
    if url := given.get("url"):
        return f"{name} @ {url}"
    return f"{name}{given.get('specifier', '')}"


def _required(extra: str) -> list[str]:
    """The requirements of an extra, one a package: with those of this package's extras that it names."""
    import importlib.metadata  # slow to import, and needed for errors only

    try:
        lines = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found: dict[str, tuple[set[str], list[str]]] = {}
    for line in _lines(lines, extra):
        if match := re.fullmatch(r"([\w.-]+)(?:\[([\w.,-]+)\])?(.*)", line):
            extras, specifiers = found.setdefault(match[1], (set(), []))
            extras.update((match[2] or "").split(",") if match[2] else ())
            specifiers += [match[3].strip()] if match[3].strip() else []
    return [
        name + (f"[{','.join(sorted(extras))}]" if extras else "") + ",".join(specifiers)
        for name, (extras, specifiers) in found.items()
    ]


def _lines(lines: Iterable[str], extra: str) -> Iterator[str]:
    for line in lines:
        if not (match := re.fullmatch(rf"(.+?)\s*;\s*extra == ['\"]{extra}['\"]", line)):
            continue
        if own := re.fullmatch(rf"{NAME}\[([\w,-]+)\]", match[1]):
            for each in own[1].split(","):
                yield from _lines(lines, each)
        else:
            yield match[1]
