"""SkyPilot's catalogs as they are in ``tests/catalog``: a few rows in its own format, all prices made up.

What a person would have in ~/.sky/catalogs/v8. SkyPilot looks there once, when it is imported; so it is its
reader of files that is another one here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixtral_sky.deploy import prices
from pixtral_sky.deploy.skypilot import sky_sdk

ROOT = Path(__file__).resolve().parent / "catalog"
DAY = "2026-11-20"  # of all of them
CLOUDS = ("aws", "gcp", "lambda", "nebius", "vast")


def install(monkeypatch: pytest.MonkeyPatch, root: Path = ROOT) -> None:
    """For as long as a test takes. A file that is not there is what a download without a network is."""
    with sky_sdk(silent=True):
        import pandas
        import requests
        from sky.catalog import aws_catalog, common

    @functools.cache
    def read(file: Path) -> pandas.DataFrame:
        if not file.is_file():
            raise requests.exceptions.ConnectionError(f"no {file.name} for a test")
        return pandas.read_csv(file)

    def load(lazy: common.LazyDataFrame) -> pandas.DataFrame:
        return read(root.joinpath(*Path(lazy._filename).parts[-2:]))

    monkeypatch.setattr(common.LazyDataFrame, "_load_df", load)
    monkeypatch.setattr(common, "get_catalog_path", lambda name: str(root / name))
    monkeypatch.setattr(prices, "_day", lambda file: DAY if file.is_file() else "")
    monkeypatch.setattr(aws_catalog, "_user_df", None)


@contextmanager
def skypilot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """SkyPilot's package with these catalogs, and no server."""
    install(monkeypatch)
    with sky_sdk(silent=True) as sky, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield sky
