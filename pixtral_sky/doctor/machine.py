"""Checks of this machine: the versions, where things are kept, the task file, ssh."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess

from pixtral_sky import __version__, config
from pixtral_sky.deploy import gpus, store, task
from pixtral_sky.doctor.check import Absent, Facts, Unchecked
from pixtral_sky.errors import PixtralSkyError
from pixtral_sky.text import counted

WAIT_SECONDS = 10.0  # for a program that says its version
INSTALL_SSH = "Install OpenSSH's client: apt install openssh-client"


def versions(_: Facts) -> str:
    return f"{__version__}, on Python {platform.python_version()}"


def files(_: Facts) -> str:
    """Where things are kept: what is remembered, with its keys; the rehearsal's engine; the configuration."""
    import platformdirs

    there = [str(path.absolute()) for path in config.paths() if path.is_file()]
    return (
        f"state in {store.home()} ({counted(len(store.known()), 'deployment')}),"
        f" cache in {platformdirs.user_cache_path('pixtral-sky')},"
        f" config: {' and '.join(there) or f'none, nor {config.paths()[0]}'}"
    )


def task_file(facts: Facts) -> str:
    facts.the_task = task.load(facts.file)
    facts.the_task.check({})
    if facts.file:
        command = "serve up" if "service" in facts.the_task.config else "launch"
        facts.launch = f"pixtral-sky {command} --file {shlex.quote(str(facts.file))}"
    return f"{facts.the_task.path}, with vLLM {facts.the_task.vllm_version}"


def fit(facts: Facts) -> str:
    """Whether each of the GPUs of the task file holds the model."""
    the_task = facts.the_task
    names = ", ".join(dict.fromkeys(gpus.of_file(facts.resources)))
    if not names:
        raise Absent("The task file names none.", f"Run: {facts.launch} --gpus L4:2")
    gpus.check_fit(None, the_task.config, the_task.envs)
    said = gpus.check_names(None, the_task.config, str(facts.place) if facts.place else None)
    if gpus.has_own_needs(the_task.envs):
        said.append("With a MODEL or EXTRA_ARGS of one's own, what they hold shows when it starts.")
    if said:
        raise Unchecked(f"{names}: {' '.join(said)}")
    return f"{names}: each holds the model in {the_task.envs.get('PRECISION') or 'bf16'}"


def ssh(facts: Facts) -> str:
    program = shutil.which("ssh")
    if not program and facts.place and facts.place.cloud != "slurm":
        raise Absent(f"There is no ssh on this machine: --private needs it. {INSTALL_SSH}")
    if not program:
        raise PixtralSkyError(
            "There is no ssh on this machine, and no other way to a server without an open port.", INSTALL_SSH
        )
    said = subprocess.run(
        [program, "-V"], stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_SECONDS, env=os.environ
    )
    return said.stderr.decode(errors="replace").partition(",")[0].strip() or program
