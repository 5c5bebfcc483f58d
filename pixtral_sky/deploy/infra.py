"""The syntax of --infra: aws, gcp/us-central1, k8s/CONTEXT, slurm/NAME. Pure: it needs no SkyPilot."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixtral_sky.errors import UsageError
from pixtral_sky.text import closest, quoted

# SkyPilot 0.14.1's (sky/skylet/constants.py, ALL_CLOUDS), which has an extra of the same name for each.
CLOUDS = (
    *("aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "kubernetes", "lambda"),
    *("mithril", "nebius", "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform"),
    *("slurm", "ssh", "vast", "verda", "vsphere", "yotta"),
)
OWN = ("kubernetes", "slurm", "ssh", "vsphere")  # of a user's own machines: no prices
CONTEXTS = ("kubernetes", "ssh")  # all that follows is one name, which may have slashes
ALIASES = {"k8s": "kubernetes"}
LONGEST = 253  # characters of a name: more than any cloud has
EXAMPLES = "For example: --infra aws, gcp/us-central1, k8s, slurm/NAME"


@dataclass(frozen=True)
class Infra:
    """A cloud and a place in it; an empty part means any. ``region``: a context, a pool, or a Slurm too."""

    cloud: str
    region: str = ""
    zone: str = ""

    @property
    def is_own(self) -> bool:
        """Whether its machines are the user's own, which may name their GPUs freely."""
        return self.cloud in OWN

    def __str__(self) -> str:
        parts = [self.cloud, self.region, self.zone]
        while parts and not parts[-1]:
            parts.pop()
        return "/".join(part or "*" for part in parts)


def named(word: str) -> str:
    """SkyPilot's name of a cloud, whatever its case, of ``k8s`` too; another word stays, in lower case."""
    return ALIASES.get(word.lower(), word.lower())


def parse(text: str) -> Infra:
    """The place that ``text`` names, as SkyPilot reads it. Raises UsageError for what SkyPilot refuses."""
    if not (words := text.strip().strip("/").strip()):
        raise UsageError("--infra is empty.", "Leave it out to take what the file allows.")
    cloud, _, rest = (part.strip() for part in words.partition("/"))
    cloud = named(cloud)
    if cloud not in (*CLOUDS, "*"):
        close = closest(cloud, (*CLOUDS, *ALIASES))
        raise UsageError(
            f"There is no cloud {quoted(cloud)}.",
            f"Did you mean {close}?" if close else f"There are: {', '.join(CLOUDS)}",
        )
    parts = [rest] if cloud in CONTEXTS else [part.strip() for part in rest.split("/")]
    if rest and not all(parts):
        raise UsageError(f"--infra {quoted(words)} has an empty part.", EXAMPLES)
    if len(parts) > 2:
        raise UsageError(f"--infra {quoted(words)} has more than a cloud, a region and a zone.", EXAMPLES)
    # Clouds' regions and zones are plain words; people name their own as they like.
    plain = r"[\x21-\U0010ffff]+" if cloud in OWN else r"[A-Za-z0-9._-]+|\*"
    for part in filter(None, parts):
        if len(part) > LONGEST or not re.fullmatch(plain, part) or not part.isprintable():
            raise UsageError(f"{quoted(part)} is no name of a place in {cloud}.", EXAMPLES)
    cloud, *places = ("" if part == "*" else part for part in (cloud, *parts))
    return Infra(cloud, *places)
