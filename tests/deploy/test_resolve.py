"""Which endpoint and which key are meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pixtral_sky.client.endpoint import Endpoint
from pixtral_sky.deploy.resolve import find
from pixtral_sky.deploy.store import remember
from pixtral_sky.errors import NoEndpoint, UsageError
from tests.support import deployments
from tests.support.command_line import KEY
from tests.support.deployments import running

ENV = {"PIXTRAL_ENDPOINT": "http://from-env:9000/v1", "PIXTRAL_API_KEY": "sk-ENV"}


def test_the_argument_comes_first() -> None:
    remember(running())
    found = find("arg:1", "sk-ARG", environ=ENV)
    assert (found.url, found.key) == ("http://arg:1", "sk-ARG")
    assert found.max_model_len is None, "only the endpoint itself knows"


def test_an_argument_takes_the_key_of_the_environment() -> None:
    remember(running())
    assert find("arg:1", environ={"PIXTRAL_API_KEY": "sk-ENV"}).key == "sk-ENV"
    assert find("arg:1", environ={**ENV, "PIXTRAL_ENDPOINT": "http://arg:1/v1"}).key == "sk-ENV"
    assert find("arg:1", environ={**ENV, "PIXTRAL_ENDPOINT": "other:1"}).key == "", "it is another's"
    assert find("arg:1", environ={}).key == "", "and never the remembered one"


def test_an_argument_and_a_name_are_one_too_many() -> None:
    remember(running("other"))
    with pytest.raises(UsageError, match=r"^--endpoint and --name both say whom to ask\."):
        find("arg:1", name="other", environ={})


def test_then_the_environment() -> None:
    remember(running())
    found = find(environ=ENV)
    assert (found.url, found.key) == ("http://from-env:9000", "sk-ENV")
    assert find(environ={"PIXTRAL_ENDPOINT": "from-env:9000"}).key == "", "never the remembered one"
    assert find(key="sk-ARG", environ=ENV).key == "sk-ARG"


def test_then_what_is_remembered() -> None:
    remember(running(url="http://127.0.0.1:7777", max_model_len=4096, max_images=2))
    assert find(environ={}) == Endpoint(
        "http://127.0.0.1:7777", KEY, max_model_len=4096, max_images=2, origin="pixtral"
    )


def test_a_name_goes_before_the_environment() -> None:
    remember(running("other", key="sk-OTHER", url="http://127.0.0.1:7777"))
    found = find(name="other", environ=ENV)
    assert (found.url, found.key) == ("http://127.0.0.1:7777", "sk-OTHER")
    with pytest.raises(NoEndpoint):
        find(name="unknown", environ=ENV)


def test_the_default_name_can_be_named() -> None:
    remember(running())
    assert find(name="pixtral", environ=ENV).url == "http://127.0.0.1:8081"


def test_a_key_of_the_environment_is_not_for_a_remembered_running() -> None:
    remember(running())
    remember(running("open", key=""))
    environ = {"PIXTRAL_API_KEY": "sk-ENV"}
    assert find(environ=environ).key == KEY
    assert find(name="open", environ=environ).key == ""
    assert find(key="sk-ARG", environ=environ).key == "sk-ARG", "one that is given is for whatever is asked"


HERE = "http://127.0.0.1:8081"  # where `running` is


@pytest.mark.parametrize("environ", [{"PIXTRAL_ENDPOINT": f"{HERE}/v1"}, {}])
def test_an_address_that_is_remembered_has_its_own_key(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a shell holds the key of an earlier one there."""
    remember(running("other", url="http://127.0.0.1:7777"))
    remember(running("mine", max_images=2))
    url = None if environ else "127.0.0.1:8081"
    found = find(url, environ={**environ, "PIXTRAL_API_KEY": "sk-OLD"})
    assert (found.key, found.max_images, found.origin) == (KEY, 2, "mine")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"Warning: PIXTRAL_API_KEY is not the key of 'mine', which is at {HERE}: its own is taken. "
        'Renew it: eval "$(pixtral-sky endpoint --env -n mine)"\n'
    )
    for same in ({**environ, "PIXTRAL_API_KEY": KEY}, environ):
        assert find(url, environ=same) == found
    assert find(url, "sk-ARG", environ={**environ, "PIXTRAL_API_KEY": "sk-OLD"}).key == "sk-ARG"
    assert capsys.readouterr().err == "", "there is nothing to warn of"


def test_an_address_behind_ssh_has_its_tunnel(home: Path) -> None:
    """Without it, the remembered key would go to whoever listens there."""
    private = deployments.cluster(url=HERE, private=True)
    (home / "deployments" / "damaged.json").write_text("{")
    found = find(environ={"PIXTRAL_ENDPOINT": HERE})
    assert (found.key, found.tunnel) == (KEY, private.tunnel())


def test_the_newest_at_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    deployments.rehearsal("ended", url=HERE, key="sk-ENDED")
    deployments.cluster("old", url=HERE, key="sk-BEFORE", created=1.0)
    deployments.service("new", url=HERE, created=2.0)
    assert find(HERE, environ={}).origin == "new"
    deployments.service("new", url="http://elsewhere:1")
    deployments.cluster("old", url="http://elsewhere:2")
    assert find(HERE, environ={"PIXTRAL_API_KEY": "sk-ENV"}).key == "sk-ENV", (
        "one that has ended has no address"
    )
    assert capsys.readouterr().err == ""


def test_the_user_knows_more_of_what_was_launched_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    deployments.cluster(url=HERE, request="", key="sk-BEFORE")
    assert find(HERE, environ={"PIXTRAL_API_KEY": "sk-ENV"}).key == "sk-ENV"
    assert find(HERE, environ={}).key == "sk-BEFORE"
    assert capsys.readouterr().err == ""


def test_an_empty_variable_is_none() -> None:
    remember(running())
    assert find(environ={"PIXTRAL_ENDPOINT": ""}).key == KEY


def test_the_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_ENDPOINT", "real:1")
    assert find().url == "http://real:1"


def test_nothing_is_found() -> None:
    with pytest.raises(NoEndpoint) as caught:
        find(environ={})
    assert caught.value.exit_code == 2
    assert "pixtral-sky rehearse --keep" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_name_is_in_the_hint() -> None:
    with pytest.raises(NoEndpoint) as caught:
        find(name="nosuch", environ={})
    assert "pixtral-sky launch -n nosuch, or pixtral-sky rehearse -n nosuch --keep" in caught.value.hint


def test_what_is_empty_is_not_the_default() -> None:
    remember(running())
    with pytest.raises(UsageError, match="'' is no name"):
        find(name="", environ={})
    with pytest.raises(UsageError, match="'' is not the URL"):
        find("", environ={})


def test_others_are_named() -> None:
    remember(running("b"))
    remember(running("a"))
    with pytest.raises(NoEndpoint, match="'pixtral'") as caught:
        find(environ={})
    assert "a, b" in caught.value.hint


def test_a_bad_url_of_the_environment() -> None:
    with pytest.raises(UsageError, match="'ftp://x' is not the URL"):
        find(environ={"PIXTRAL_ENDPOINT": "ftp://x"})


def test_an_ended_rehearsal_is_said() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    remember(running(pid=child.pid, log="/the/log"))
    with pytest.raises(NoEndpoint, match=r"'pixtral' has ended.*/the/log") as caught:
        find(environ={})
    assert "pixtral-sky rehearse --keep" in caught.value.hint
    assert find("arg:1", environ={}).url == "http://arg:1", "it is in nobody's way"


def test_the_hint_is_for_where_it_came_from() -> None:
    remember(running())
    status = "Is it running? pixtral-sky status pixtral"
    at_fault = "PIXTRAL_ENDPOINT is set here: correct it, or unset it."
    here, given = find(environ={}), find("arg:1", environ={})
    assert (here.hint, here.key_hint) == (status, status)
    assert find(environ=ENV).hint == find(environ={"PIXTRAL_ENDPOINT": "from-env:9000"}).hint == at_fault
    assert given.hint == "Is its address right?"
    assert find("https://arg", environ={}).hint == "Is its address right?"
    without_port = find("arg/pixtral/v1", environ={}).hint
    assert without_port == "Is its address right? It has no port; try http://arg:8081/pixtral"


def test_the_hint_about_a_key_names_what_gave_it() -> None:
    remember(running())
    alone = {"PIXTRAL_ENDPOINT": "from-env:9000"}
    assert find(environ=alone).key_hint == "Give it: export PIXTRAL_API_KEY=..."
    by_url = "Give it: export PIXTRAL_ENDPOINT=http://arg:1 PIXTRAL_API_KEY=..."
    assert find("arg:1", environ=ENV).key_hint == find("arg:1", environ={}).key_hint == by_url
    assert "correct the key, or unset both" in find(environ=ENV).key_hint
    assert find("arg:1", environ={"PIXTRAL_API_KEY": "sk"}).key_hint == "Is PIXTRAL_API_KEY right?"
    for found in (find(key="sk", environ=ENV), find("arg:1", "sk", environ=ENV), find(key="sk", environ={})):
        assert found.key_hint == "Is the key of --api-key right?"
