"""The served workbench: named endpoints through gradio_client, and what it refuses to serve."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from tests.tiny import tiny_checkpoint
from tests.ui_server import served
from ui.session import Bench

pytestmark = pytest.mark.filterwarnings("default")  # the server's and the client's own warnings

SPEC = """version: 1
edits:
  - kind: rome
    facts: [{prompt: "The capital of {} is", subject: France, target: Rome}]
    layer: 1
    steps: 4
    contexts: 0
    statistics_tokens: 400
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("served"), "llama")


@pytest.fixture(scope="module")
def app(checkpoint: Path) -> Iterator[tuple[str, Bench]]:
    # Importing nnsight changes `object` for the whole process, which once broke the server.
    from surgery.trace import next_tokens  # noqa: F401
    from surgery.trace.engine import capture  # noqa: F401

    with served(checkpoint) as running:
        yield running


@pytest.fixture
def client(app: tuple[str, Bench], checkpoint: Path) -> Client:
    url, bench = app
    bench.open(checkpoint)
    return Client(url, verbose=False)


def last(client: Client, *inputs: Any, api_name: str) -> str:
    """What a streaming endpoint shows in the end. (`predict` gives what came first.)"""
    job = client.submit(*inputs, api_name=api_name)
    job.result(timeout=120)
    while not job.done():
        time.sleep(0.02)
    return str(job.outputs()[-1])


def test_the_story_through_named_endpoints(client: Client, app: tuple[str, Bench]) -> None:
    bench = app[1]
    assert client.predict(SPEC, api_name="/validate")["valid"]
    base = client.predict(api_name="/stack")
    assert base["is_base"] and base["edits"] == []

    last(client, SPEC, api_name="/solve")
    edited = client.predict(api_name="/stack")
    assert len(edited["edits"]) == 1 and edited["changed"] == [
        "model.layers.1.mlp.down_proj.weight"
    ]
    assert "1 edit" in edited["state"]

    shown = last(
        client,
        *("The capital of France is", "text", "base", "words", 8, 0, 0),
        api_name="/compare_sides",
    )
    assert "Before" in shown and "After" in shown and "surgery answers" in shown

    id = edited["edits"][0]["id"]
    off = client.predict("toggle", id, api_name="/stack_change")
    assert off["is_base"] and off["digest"] == base["digest"]
    client.predict("toggle", id, api_name="/stack_change")
    for _ in range(3):
        client.predict("undo", "", api_name="/stack_change")
    assert client.predict(api_name="/stack")["is_base"] and not bench.stack


def test_a_bad_path_is_a_message_and_changes_nothing(client: Client) -> None:
    before = client.predict(api_name="/stack")
    assert "no such checkpoint folder" in last(client, "/nowhere/at all", api_name="/load")
    assert client.predict(api_name="/stack")["state"] == before["state"]


def test_a_wrong_spec_is_a_message_with_its_line(client: Client) -> None:
    found = client.predict(SPEC.replace("layer:", "layre:"), api_name="/validate")
    assert not found["valid"] and "line 5" in found["error"]
    assert "line 5" in last(client, SPEC.replace("layer:", "layre:"), api_name="/solve")
    assert client.predict(api_name="/stack")["edits"] == []


def test_tracing_and_then_serving(client: Client) -> None:
    found = last(client, "The capital of France is", "France", "", api_name="/trace")
    assert "heat" in found and "layer" in found
    assert "Logit lens" in last(client, "The sun is", "", api_name="/lens")
    assert "Probability" in last(client, "The sun is", api_name="/next_token")


def test_two_clients_take_turns(app: tuple[str, Bench], client: Client) -> None:
    other = Client(app[0], verbose=False)
    jobs = [
        one.submit("The sun is", "text", "base", "words", 12, 0, 0, api_name="/compare_sides")
        for one in (client, other, client)
    ]
    jobs.append(other.submit(SPEC, api_name="/solve"))
    for job in jobs:
        job.result(timeout=120)
    while not all(job.done() for job in jobs):
        time.sleep(0.05)
    assert all("<footer>12 tokens" in str(job.outputs()[-1]) for job in jobs[:3])
    assert client.predict(api_name="/stack") == other.predict(api_name="/stack")
    assert len(client.predict(api_name="/stack")["edits"]) == 1


def test_every_event_has_a_name_of_its_own(app: tuple[str, Bench]) -> None:
    from ui.app import page

    events = page(Bench()).fns.values()
    names = [event.api_name for event in events]
    assert len(names) == len(set(names)) and "lambda" not in " ".join(map(str, names))
    # Whatever may touch the model shares one queue.
    heavy = [e for e in events if e.queue]
    assert {e.concurrency_id for e in heavy} == {"model"}
    assert {e.concurrency_limit for e in heavy} == {1}


def test_only_exports_are_served(app: tuple[str, Bench], checkpoint: Path) -> None:
    from ui.actions.places import export_folder

    url = app[0]
    for path in (
        "/etc/passwd",
        str(checkpoint / "config.json"),
        str(Path("pyproject.toml").resolve()),
    ):
        assert httpx.get(f"{url}/gradio_api/file={path}").status_code in (403, 404), path
    note = export_folder() / "note.txt"
    note.write_text("mine")
    assert httpx.get(f"{url}/gradio_api/file={note}").text == "mine"
    for path in ("/monitoring", "/gradio_api/monitoring"):
        assert "analytics" not in httpx.get(url + path).text.lower()


def test_auth_is_asked_for(checkpoint: Path) -> None:
    with served(None, auth=("me", "secret")) as (url, _):
        assert httpx.get(f"{url}/config").status_code == 401
        assert httpx.post(f"{url}/gradio_api/call/stack", json={"data": []}).status_code == 401
        login = httpx.post(f"{url}/login", data={"username": "me", "password": "wrong"})
        assert login.status_code == 400


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--base", "/nowhere"], 1, "no such checkpoint folder"),
        (["--host", "0.0.0.0"], 2, "--auth"),
        (["--auth", "me"], 1, "USER:PASSWORD"),
    ],
)
def test_what_is_wrong_on_the_command_line(argv: list[str], code: int, said: str) -> None:
    done: Any = subprocess.run(
        [sys.executable, "-m", "ui.app", *argv], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
