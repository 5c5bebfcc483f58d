"""One service for most of the tests, and a table of all that was counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.serve.load import HEAD, ROWS
from tests.real.serve.rig import Service


@pytest.fixture(scope="session")
def the_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def service(the_service: Service) -> Service:
    """service.yaml as it is shipped, with two replicas that are ready, whatever the last test did to them."""
    the_service.wait_for(ready=2)
    return the_service


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [HEAD, *filter(None, ROWS)]
    if ROWS:
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        terminalreporter.write_sep("-", "requests through SkyServe, by what their users got")
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            terminalreporter.write_line("  ".join(cells).rstrip())
