"""Write docs/capacity.png and the output of `capacity` into docs/autoscaling.md; --check only compares.

The picture has the fingerprint of its source, so that a check needs no matplotlib, whatever its version.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from generated import PAGE, ROOT, complain, drawn_from, renewed
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PICTURE = ROOT / "docs" / "capacity.png"
DRAWS = ROOT / "pixtral_sky" / "planning" / "charts.py"
COMMAND = ["capacity", "--pattern", "burst", "--qps", "1..9", "--goal", "3%"]


def main() -> int:
    checks = "--check" in sys.argv
    with tempfile.TemporaryDirectory() as empty:
        drawn = Path(empty) / "capacity.png"
        said = run([] if checks else ["--plot", str(drawn)], home=empty)
        text, new = PAGE.read_text(), hashlib.sha256(said.encode() + DRAWS.read_bytes()).hexdigest()
        page = renewed(text, "capacity", f"```\n$ pixtral-sky {' '.join(COMMAND)}\n{said}```")
        stale = [path for path, old in ((PAGE, text != page), (PICTURE, drawn_from(PICTURE) != new)) if old]
        if checks:
            complain(stale, "python tools/capacity.py")
            return int(bool(stale))
        PAGE.write_text(page)
        if PICTURE in stale:
            info = PngInfo()
            info.add_text("Fingerprint", new)
            with Image.open(drawn) as picture:
                picture.convert("RGB").save(PICTURE, pnginfo=info, optimize=True)
    return 0


def run(more: list[str], home: str) -> str:
    """The output of the command. SkyPilot writes into its home when it is imported."""
    command = [sys.executable, "-m", "pixtral_sky", "--quiet", *COMMAND, *more]
    environ = {**os.environ, "HOME": home}
    return subprocess.run(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
