"""A check of the doctor, and the order in which checks are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy.infra import Infra
from pixtral_sky.deploy.task import Task
from pixtral_sky.errors import PixtralSkyError
from pixtral_sky.text import printable

State = Literal["ok", "failed", "unchecked", "absent"]
MARKS: dict[State, str] = {"ok": "ok", "failed": "FAIL", "unchecked": "?", "absent": "-"}


@dataclass(frozen=True)
class Check:
    """The result for one ``subject``; ``hint`` says what mends it. It holds no secret."""

    state: State
    subject: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{MARKS[self.state]:<4} {self.subject:<15} {self.text} {self.hint}".rstrip()


class Unchecked(PixtralSkyError):
    """The check could not be made."""

    state: State = "unchecked"


class Absent(PixtralSkyError):
    """There is nothing to check yet."""

    state: State = "absent"


@dataclass
class Facts:
    """What is asked, and what the checks find out for one another."""

    name: str | None  # the deployment; None: PIXTRAL_ENDPOINT, or pixtral
    file: Path | None
    place: Infra | None  # None: wherever SkyPilot may launch
    secrets: set[str] = field(default_factory=set)
    launch: str = "pixtral-sky launch"  # the command that launches the task file
    enabled: Sequence[str] = ()  # what SkyPilot may launch on
    the_task: Task = field(init=False)
    endpoint: Endpoint = field(init=False)

    @property
    def resources(self) -> Any:
        """Of the task file; None while it is not read."""
        return self.the_task.config.get("resources") if hasattr(self, "the_task") else None

    def clean(self, text: str) -> str:
        """``text`` in one line and without secrets: it may quote other programs."""
        # A shorter value is no secret, and may be part of any word.
        for secret in filter(lambda each: len(each) >= 6, self.secrets):
            text = text.replace(secret, "***")
        text = re.sub(r"://[^/\s@]+@", "://***@", text)  # a password in a URL
        return " ".join(printable(text.replace("\n", " ")).split())


@dataclass(frozen=True)
class Step:
    """``check`` returns what is well, or raises what is not; an empty text is not shown.

    It depends on the subjects in ``needs``.
    """

    subject: str
    check: Callable[[Facts], str]
    needs: tuple[str, ...] = ()


def run(steps: Iterable[Step], facts: Facts) -> Iterator[Check]:
    """Make each check when its result is asked for. What depends on something absent is not shown."""
    found: dict[str, State] = {}
    for step in steps:
        missing = [need for need in step.needs if found.get(need, "ok") != "ok"]
        if any(found[need] == "absent" for need in missing):
            check = Check("absent", step.subject, "")
        elif missing:
            check = Check("unchecked", step.subject, f"not checked: {missing[0]!r} comes first.")
        else:
            check = _made(step, facts)
        found[step.subject] = check.state
        if check.text:
            yield check


def _made(step: Step, facts: Facts) -> Check:
    state: State = "ok"
    text, hint = "", ""
    try:
        text = step.check(facts)
    except PixtralSkyError as error:
        state = getattr(error, "state", "failed")
        text, hint = error.what, error.hint
    except (Exception, SystemExit) as error:  # SystemExit: SkyPilot's libraries may exit
        state, text = "failed", f"{type(error).__name__}: {error}".rstrip(".: ") + "."
    return Check(state, step.subject, facts.clean(text), facts.clean(hint))
