"""Write the price of an hour into the README, from SkyPilot's catalogs; --check needs none of them.

It reads the catalogs as `pixtral-sky plan` does: SkyPilot downloads them. ``--of "May 2026"`` is the date of
catalogs that are in ~/.sky already. --check holds the rest of the table against the files and the memory that
is computed, and says when the prices are old.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Iterator

import generated
import yaml

from pixtral_sky import memory

PAGE = generated.ROOT / "README.md"
HEAD = ("GPUs", "an hour", "on spot", "requests at once")
CLOUDS = ("aws", "azure", "gcp", "lambda")
OLD_DAYS = 200
ROW = re.compile(r"^\| (\S+):(\d+)(, fp8)? \| \$[\d.]+ \w+ \| (?:\$[\d.]+ \w+|-) \| (\d+) \|$", re.MULTILINE)
DATE = re.compile(r"catalogs of (\w+ \d{4})")


def machines() -> list[tuple[str, int, str]]:
    """Those of pixtral.yaml, and one L4, each in the precision in which it is meant."""
    named = yaml.safe_load((generated.ROOT / "pixtral.yaml").read_text())["resources"]["accelerators"]
    pairs = (each.partition(":") for each in named)
    return [("L4", 1, "fp8"), *((gpu, int(count or 1), "bf16") for gpu, _, count in pairs)]


def rows(clouds: list[str]) -> Iterator[str]:
    """The cheapest offer for each machine, the cheapest machine first."""
    from pixtral_sky.deploy import prices

    wanted = machines()
    found = prices.read(
        sorted({gpu for gpu, _, _ in wanted}),
        sorted({n for _, n, _ in wanted}),
        cpus=4,
        memory=32,
        clouds=clouds,
    )
    cheapest = []
    for gpu, count, precision in wanted:
        here = [each for each in found.offers if (each.gpu, each.count) == (gpu, count)]
        spots = [(each.spot, each.cloud) for each in here if each.spot]
        if here:
            least = min((each.hourly, each.cloud) for each in here)
            cheapest.append((least, min(spots, default=None), gpu, count, precision))
    for least, spot, gpu, count, precision in sorted(cheapest, key=lambda each: each[0]):
        cells = [
            f"{gpu}:{count}" + ", fp8" * (precision == "fp8"),
            f"${least[0]:.2f} {least[1]}",
            f"${spot[0]:.2f} {spot[1]}" if spot else "-",
            f"{memory.fits(gpu, count, precision=precision).requests}",
        ]
        yield f"| {' | '.join(cells)} |"


def block(clouds: list[str], of: str) -> str:
    said = (
        f"The least of {', '.join(clouds)} in SkyPilot's catalogs of {of}, without disk and traffic; a"
        " request with one full\npicture. Today's prices, and other clouds: `pixtral-sky plan`."
    )
    head = f"| {' | '.join(HEAD)} |\n| --- | --- | --- | --- |"
    return "\n".join([head, *rows(clouds), "", said])


def wrong(text: str, today: datetime.date) -> Iterator[str]:
    """What of the table is not so, as far as that is known without a network."""
    table = text.partition("<!-- prices -->")[2].partition("<!-- /prices -->")[0]
    found = ROW.findall(table)
    if len(found) != len(re.findall(r"^\|", table, re.MULTILINE)) - 2 or len(found) < 4:
        yield "the table of prices has rows that cannot be read"
    for gpu, count, fp8, at_once in found:
        precision = "fp8" if fp8 else "bf16"
        if (gpu, int(count), precision) not in machines():
            yield f"{gpu}:{count} is not in pixtral.yaml"
        elif memory.fits(gpu, int(count), precision=precision).requests != int(at_once):
            yield f"{gpu}:{count} does not hold {at_once} requests at once"
    if not (date := DATE.search(table)):
        yield "the table of prices has no date"
    elif (today - datetime.datetime.strptime(date[1], "%B %Y").date()).days > OLD_DAYS:
        print(
            f"The prices in README.md are of {date[1]}. Renew them: python tools/prices.py", file=sys.stderr
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--of", default=datetime.date.today().strftime("%B %Y"))
    parser.add_argument("--clouds", default=",".join(CLOUDS))
    given = parser.parse_args()
    text = PAGE.read_text()
    if given.check:
        reasons = list(wrong(text, datetime.date.today()))
        for each in reasons:
            print(f"README.md: {each}. Run: python tools/prices.py", file=sys.stderr)
        return int(bool(reasons))
    PAGE.write_text(generated.renewed(text, "prices", block(given.clouds.split(","), given.of)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
