"""What the options and the files alone decide is refused at once: no SkyPilot is imported, no Hub is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pixtral_sky.deploy import huggingface, skypilot
from tests.support.command_line import Run

HUGE = "9" * 400
TEXT = ["", "ü", "a" * 400]
BAD = {
    "--name": ["", "a b", "1a", "ä", "-x", "a" * 64, "../x", "a/b", "a\n"],
    "--infra": [*TEXT, "/", "nonsense", "none", "aws/x/y/z", "aws//x", "aws/ü", "aws/a b"],
    "--gpus": [*TEXT, " ", ":2", "L4:", "L4:-2", "L4:0", "L4:2.5", "L4:nan", "L4:inf", f"L4:{HUGE}", "L4:²", "L4,H100",
               "L4:3", "L4:1", "80GB+"],
    "--precision": [*TEXT, "int4", "bf16 ", "nan"],
    "--max-price": [*TEXT, "nan", "inf", "-inf", "-1", "0", "1e300", "1e400", "two"],
    "--env": [*TEXT, "=", "A", "X=", "ü=1", "HF_TOKEN=x", "PORT=0", "PORT=99999", "PORT=nan", "MAX_IMAGES=-1", "MAX_IMAGES=",
              f"MAX_IMAGES={HUGE}", "MAX_MODEL_LEN=1", "MAX_MODEL_LEN=inf", "IMAGE_URLS=§", "PRECISION=int4", "MODEL_REVISION="],
    "--file": ["", "none.yaml", ".", "a" * 400, "bad.yaml", "\udcff.yaml"],
}  # fmt: skip
OF_LAUNCH = {
    "--retry-minutes": [*TEXT, "nan", "inf", "-1", "1e300"],
    "--idle": [*TEXT, "nan", "inf", "-1", "1e300"],
}
OF_SERVICES = {
    "--replicas": [*TEXT, "nan", "inf", "-1", "0", "0..0", "5..2", "99999", "1.5", "²", "2..", "..2"],
    "--target-qps": [*TEXT, "nan", "inf", "-1", "0", "1e300"],
}
CASES = [
    (command, option, value)
    for command, options in (
        ("launch", BAD | OF_LAUNCH),
        ("serve up", BAD | OF_SERVICES),
        ("serve update", {name: values[:3] for name, values in (BAD | OF_SERVICES).items()}),
        ("rehearse", {name: BAD[name] for name in ("--name", "--file")} | {"--port": [*TEXT, "nan", "-1", "65536", "1.5"]}),
    )
    for option, values in options.items()
    for value in values
]  # fmt: skip


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("it was asked")

    for name in [each for each in sys.modules if each.partition(".")[0] == "sky"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(skypilot, "sky_sdk", asked)
    monkeypatch.setattr(skypilot, "installed", lambda: "0.14.1")
    monkeypatch.setattr(huggingface, "_head", asked)
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("run: [")


@pytest.mark.parametrize(("command", "option", "value"), CASES)
def test_bad_options(run: Run, command: str, option: str, value: str) -> None:
    result = run(*command.split(), f"{option}={value}", *(["--yes"] if command != "rehearse" else []))
    assert result.code == 2, result
    assert len(result.error) < 500
    assert "sky" not in sys.modules


@pytest.mark.parametrize("command", ["launch", "serve up", "serve update"])
@pytest.mark.parametrize(
    "option",
    ["--name=a b", "--infra=nonsense", "--gpus=L4:0", "--max-price=nan", "--precision=int4"],
)
def test_options_come_before_files(run: Run, command: str, option: str) -> None:
    result = run(*command.split(), option, "--yes", "--file", "none.yaml")
    assert result.code == 2
    assert "none.yaml" not in result.error


@pytest.mark.parametrize("command", ["launch", "serve up"])
@pytest.mark.parametrize("env", ["MODEL=", "MODEL=a/b/c/d", "MODEL_REVISION=../x"])
def test_a_model_that_is_none(run: Run, command: str, env: str) -> None:
    """It is not asked for, at the Hub or anywhere."""
    result = run("-q", *command.split(), "--yes", "--env", env)
    assert result.code in (1, 2)
    assert "MODEL" in result.error
    assert "sky" not in sys.modules
