"""Measures what preparing a picture costs, what it saves, and how much of the picture the model still sees.

    python -m benchmarks.images             # prints the table
    python -m benchmarks.images --write     # and puts it into docs/performance.md

The pictures are drawn from seeds (tests/support/pictures.py). The naive side uses Pillow: open, convert to
RGB, shrink into 1024 x 1024 by LANCZOS, save as a JPEG of quality 95. The sides take turns in one run. A
figure is the median, and in brackets the quartiles. One thread is measured in CPU time, with OpenCV on one
thread, so the figures are those of one core; two threads are compared with one by wall time.
"""

from __future__ import annotations

import io
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import PIL
from PIL import Image

from benchmarks import page
from pixtral_sky.pictures import prepare
from pixtral_sky.pictures.turbo import Turbo
from tests.support.pictures import diagram, fidelity, photo, psnr, saved, scan, screen, seen

ROUNDS = 5
BOX = (1024, 1024)

Prepare = Callable[[bytes], bytes]


def drawn() -> Iterator[tuple[str, list[bytes]]]:
    """Each class, and the files of its pictures."""
    turned = Image.Exif()
    turned[0x0112] = 6
    phone = {"quality": 90, "subsampling": 2}
    yield (
        "photos, 12 megapixels",
        [
            saved(photo(1), "JPEG", **phone),
            saved(photo(2, detail=1.3, slope=1.1, noise=4, sharpen=120), "JPEG", exif=turned, **phone),
            saved(photo(3, detail=0.6, noise=8, sharpen=60), "JPEG", **phone),
            saved(photo(4, detail=0.8, slope=1.5, noise=1.5), "JPEG", **phone),
        ],
    )
    yield (
        "scans in JPEG, A4, 300 dpi",
        [
            saved(scan(5), "JPEG", quality=90),
            saved(scan(6, size=38, color=True), "JPEG", quality=90, subsampling=2),
            saved(scan(7, size=30, color=True, noise=3, blur=0.7), "JPEG", quality=95, subsampling=0),
            saved(scan(8, size=40, blur=0.8, cleaned=True), "JPEG", quality=90),
        ],
    )
    yield (
        "scans in PNG, A4, 300 dpi",
        [saved(scan(9), "PNG"), saved(scan(10, size=36, color=True, noise=1.2), "PNG")],
    )
    yield (
        "screens",
        [
            saved(screen(11), "PNG"),
            saved(screen(12, dark=True), "PNG"),
            saved(screen(13, 2880, 1800, size=26), "PNG"),
            saved(screen(14, film=False), "PNG"),
        ],
    )
    yield (
        "diagrams",
        [
            saved(diagram(15), "PNG"),
            saved(diagram(16, 4000, 3000, stroke=6, size=60), "PNG"),
            saved(diagram(17, 2000, 1400, stroke=2, size=24), "PNG"),
        ],
    )


def naive(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = min(BOX[0] / image.width, BOX[1] / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return saved(image, "JPEG", quality=95)


def naive_fidelity(data: bytes) -> float:
    """PSNR of the naive side in dB. That it leaves pictures unturned does not count."""
    with Image.open(io.BytesIO(data)) as original, Image.open(io.BytesIO(naive(data))) as sent:
        original.getexif().pop(0x0112, None)
        return psnr(seen(sent), seen(original))


def prepared(data: bytes) -> bytes:
    return prepare.prepare(data, "picture").data


def alone() -> None:
    prepare.TURBO = Turbo(worth=10**15)


def fast() -> None:
    prepare.TURBO = Turbo(worth=0)


def as_pillow_is() -> None:
    Image.core.set_blocks_max(0)  # type: ignore[attr-defined]


SIDES: dict[str, tuple[Callable[[], None], Prepare]] = {
    "naive": (as_pillow_is, naive),
    "alone": (alone, prepared),
    "fast": (fast, prepared),
}


def per_second(method: Prepare, files: list[bytes], clock: Callable[[], float] = time.process_time) -> float:
    """Pictures a second of ``clock``, one after the other."""
    begin = clock()
    for data in files:
        method(data)
    return len(files) / (clock() - begin)


def two_threads(method: Prepare, files: list[bytes]) -> float:
    """How many times faster two threads are than one."""
    one = per_second(method, files, time.perf_counter)
    workers = [threading.Thread(target=per_second, args=(method, files)) for _ in range(2)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 2 * len(files) / (time.perf_counter() - begin) / one


def speeds(files: list[bytes]) -> dict[str, list[float]]:
    """Pictures a second of each side in each round, and the speedup of ours by two threads."""
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for side, (start, method) in SIDES.items():
            start()
            method(files[0])  # warm
            rates.setdefault(side, []).append(per_second(method, files))
            if side != "naive":
                rates.setdefault(f"{side}, two", []).append(two_threads(method, files))
    return rates


def ratios(ours: list[float], theirs: list[float]) -> str:
    return "x" + page.spread([one / other for one, other in zip(ours, theirs, strict=True)])


def measure() -> list[str]:
    shown = [
        "| | pictures | naive: least, mean dB | Pillow alone | `fast` | times fewer bytes: least, median |",
        "|---|---|---|---|---|---|",
    ]
    taken = [
        "| pictures/s | naive | Pillow alone | | `fast` | | two threads, Pillow | two threads, `fast` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, files in drawn():
        decibels = {"naive": [naive_fidelity(data) for data in files]}
        fewer = []
        for side in ("alone", "fast"):
            SIDES[side][0]()
            for data in files:
                sent = prepared(data)
                decibels.setdefault(side, []).append(fidelity(sent, data))
                if side == "alone":
                    fewer.append(len(data) / len(sent))
        values = [f"{min(each):.1f}, {statistics.mean(each):.1f}" for each in decibels.values()]
        bytes_ = f"{min(fewer):.1f}, {statistics.median(fewer):.1f}"
        shown.append(f"| {name} | {len(files)} | {' | '.join(values)} | {bytes_} |")
        rates = speeds(files)
        cells = [
            page.spread(rates["naive"]),
            *(
                cell
                for side in ("alone", "fast")
                for cell in (page.spread(rates[side]), ratios(rates[side], rates["naive"]))
            ),
            *("x" + page.spread(rates[f"{side}, two"]) for side in ("alone", "fast")),
        ]
        taken.append(f"| {name} | {' | '.join(cells)} |")
    return [*shown, "", *taken]


def main() -> None:
    arguments = page.parser(__doc__).parse_args()
    cv2.setNumThreads(1)
    lines = measure()
    lines += ["", f"{page.machine()}, Pillow {PIL.__version__}, OpenCV {cv2.__version__}."]
    page.show("images", lines, arguments.write)


if __name__ == "__main__":
    main()
