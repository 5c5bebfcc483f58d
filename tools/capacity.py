"""Write docs/capacity.png and what `capacity` says of it into docs/autoscaling.md; --check only compares.

The picture carries the fingerprint of what it was drawn from, so that a check needs no matplotlib, and
another version of it changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "autoscaling.md"
PICTURE = ROOT / "docs" / "capacity.png"
DRAWS = ROOT / "pixtral_sky" / "capacity_chart.py"
COMMAND = ["capacity", "--pattern", "burst", "--qps", "1..9", "--goal", "3%"]
BEGIN, END = "<!-- capacity -->\n", "<!-- /capacity -->"


def main() -> int:
    checks = "--check" in sys.argv
    with tempfile.TemporaryDirectory() as empty:
        drawn = Path(empty) / "capacity.png"
        said = run([] if checks else ["--plot", str(drawn)], home=empty)
        text, new = PAGE.read_text(), hashlib.sha256(said.encode() + DRAWS.read_bytes()).hexdigest()
        renewed = page(text, said)
        stale = [path for path, old in ((PAGE, text != renewed), (PICTURE, fingerprint() != new)) if old]
        if checks:
            for path in stale:
                print(
                    f"{path.relative_to(ROOT)} is not of today. Run: python tools/capacity.py",
                    file=sys.stderr,
                )
            return int(bool(stale))
        PAGE.write_text(renewed)
        if PICTURE in stale:
            info = PngInfo()
            info.add_text("Fingerprint", new)
            with Image.open(drawn) as picture:
                picture.convert("RGB").save(PICTURE, pnginfo=info, optimize=True)
    return 0


def run(more: list[str], home: str) -> str:
    """What the command says. SkyPilot writes into its home when it is imported."""
    command = [sys.executable, "-m", "pixtral_sky", "--quiet", *COMMAND, *more]
    environ = {**os.environ, "HOME": home}
    return subprocess.run(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def page(text: str, said: str) -> str:
    """The page with its generated part renewed."""
    before, has_begin, rest = text.partition(BEGIN)
    _, has_end, after = rest.partition(END)
    if not (has_begin and has_end):
        raise SystemExit(f"{PAGE} has no {BEGIN.strip()} ... {END}")
    return f"{before}{BEGIN}```\n$ pixtral-sky {' '.join(COMMAND)}\n{said}```\n{END}{after}"


def fingerprint() -> str:
    if not PICTURE.exists():
        return ""
    with Image.open(PICTURE) as picture:
        return str(picture.info.get("Fingerprint", ""))


if __name__ == "__main__":
    sys.exit(main())
