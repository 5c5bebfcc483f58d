"""Checks of the secrets: the token that opens the weights, and the key of the endpoint."""

from __future__ import annotations

import os

from pixtral_sky.deploy import huggingface, store
from pixtral_sky.deploy.resolve import check_key
from pixtral_sky.doctor.check import Absent, Facts, Unchecked
from pixtral_sky.errors import PixtralSkyError


def of_environment() -> set[str]:
    names = ("PIXTRAL_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return {os.environ.get(each, "") for each in names}


def hugging_face(facts: Facts) -> str:
    envs = facts.the_task.envs
    model = envs.get("MODEL", "")
    if not model:
        raise PixtralSkyError(f"{facts.the_task.path} names no model.", "It wants an env: MODEL")
    if huggingface.is_directory(model):
        return f"{model} is a directory on the machine: no token is needed"
    token = huggingface.token()
    facts.secrets.add(token)
    if why := huggingface.check(model, token, envs.get("MODEL_REVISION") or "main"):
        raise Unchecked(why, "" if token else "There is no token here: export HF_TOKEN=...")
    return f"the token opens {model}" if token else f"{model} is open to all"


def key(facts: Facts) -> str:
    key = os.environ.get("PIXTRAL_API_KEY", "")
    check_key(key, "Make one: openssl rand -hex 32")
    if key:
        return "PIXTRAL_API_KEY is set"
    if facts.name is None and os.environ.get("PIXTRAL_ENDPOINT"):
        raise Absent("None is set for PIXTRAL_ENDPOINT.", "If it wants one: export PIXTRAL_API_KEY=...")
    name = facts.name or store.DEFAULT_NAME
    try:
        known = store.recall(name)
    except PixtralSkyError as error:
        raise Unchecked(error.what, error.hint) from error
    if known is None:
        raise Absent("There is none yet: one is made at launch.")
    if not known.key:
        raise Absent(f"None is remembered for {name!r}.")
    facts.secrets.add(known.key)
    return f"the one of {name!r} is remembered"
