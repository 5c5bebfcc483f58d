from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pixtral_sky import files


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("before")

    def interrupted() -> None:
        with files.whole(path) as file:
            file.write("half")
            file.flush()
            assert path.read_text() == "before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    with files.whole(path, encoding="utf-8", newline="") as file:
        file.write("é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.glob("*")) == [path]
    assert not list(tmp_path.glob(".*"))
