"""The whole story in a real browser: what a newcomer does, and what must not go wrong."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_checkpoint
from tests.ui_server import served
from ui.session import Bench

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 45_000  # ms; machines in CI are slow, and two tests may share one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("browser"), "llama")


@pytest.fixture(scope="module")
def app(checkpoint: Path) -> Iterator[tuple[str, Bench]]:
    with served(checkpoint) as running:
        yield running


class Window:
    """A browser window on the workbench, and everything in it that went wrong."""

    def __init__(self, browser: Any, url: str, width: int = 1360) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.trouble: list[str] = []
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(f"{url}/?__theme=light")
        self.page.wait_for_selector("#stack .base, #stack .empty")

    def _asked(self, url: str, own: str) -> None:
        if not url.startswith((own, "data:", "blob:")):
            self.trouble.append(f"asked the network for {url}")

    def screen(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name, exact=True)
        tab.first.click()
        self.page.wait_for_timeout(200)

    def write(self, where: str, text: str) -> None:
        box = self.page.locator(f"#{where} textarea, #{where} input").first
        box.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Delete")
        self.page.keyboard.type(text)

    def press(self, where: str) -> None:
        self.page.click(f"#{where}")

    def see(self, selector: str, text: str | None = None) -> Any:
        found = self.page.locator(selector)
        found = found.filter(has_text=text) if text is not None else found
        found.first.wait_for(state="visible")
        return found.first

    def yaml(self) -> str:
        return self.page.locator("#edit-yaml .cm-content").inner_text()

    def add_line(self, text: str) -> None:
        """A line at the end of the YAML, at an indentation of four, not the one the editor proposes."""
        keyboard = self.page.keyboard
        self.page.locator("#edit-yaml .cm-content").click()
        keyboard.press("Control+End")
        keyboard.press("Enter")
        for _ in range(20):
            last = self.yaml().split("\n")[-1]
            if len(last) <= 4:
                break
            keyboard.press("Backspace")
        keyboard.type(" " * (4 - len(last)) + text)

    def compose(self, subject: str, target: str) -> None:
        self.screen("Edit")
        self.write("fact-prompt", "The capital of {} is")
        self.write("fact-subject", subject)
        self.write("fact-target", target)
        self.see("#edit-yaml .cm-content", target)
        self.see("#edit-valid", "The spec is complete")

    def solve(self) -> None:
        self.press("edit-solve")
        self.see("#edit-result .told")

    def close(self) -> None:
        self.page.close()
        assert not self.trouble, self.trouble


@pytest.fixture
def window(browser: Any, app: tuple[str, Bench], checkpoint: Path) -> Iterator[Window]:
    app[1].open(checkpoint)
    window = Window(browser, app[0])
    yield window
    window.close()


def story(window: Window, prompt: str, subject: str, target: str) -> dict[str, float]:
    """Trace, edit, compare, measure, take away, undo; seconds of each."""
    seconds: dict[str, float] = {}

    def lap(name: str, since: float) -> None:
        seconds[name] = round(time.monotonic() - since, 2)

    window.see("#header .chip", "identical to the base")

    window.screen("Look inside")
    window.write("inside-prompt", prompt.replace("{}", subject))
    window.write("inside-subject", subject)
    began = time.monotonic()
    window.press("inside-trace")
    window.see("#inside-picture .heat")
    lap("trace", began)
    window.page.click("#inside-picture .layer.best")
    window.see("#edit-yaml .cm-content", "layer:")
    assert "{}" in window.page.input_value("#fact-prompt textarea")

    window.write("fact-target", target)
    window.see("#edit-yaml .cm-content", target)
    window.see("#edit-valid", "The spec is complete")
    began = time.monotonic()
    window.solve()
    lap("solve", began)
    window.see("#stack .edit.on", target)
    window.see("#header .chip.is-edited", "1 tensor changed")

    window.screen("Before and after")
    window.write("sides-prompt", prompt.replace("{}", subject))
    asked = time.monotonic()
    window.press("sides-run")
    window.page.wait_for_function(
        "() => [...document.querySelectorAll('#sides-answers .said')]"
        ".some(side => side.innerText.trim().length > side.querySelector('.asked').innerText.length + 1)",
        polling=50,
    )
    lap("first words", asked)
    window.see("#sides-next table")
    lap("compared", began)
    assert window.page.locator("#sides-answers mark").count() > 0

    window.screen("Damage")
    began = time.monotonic()
    window.press("damage-run")
    window.page.wait_for_selector("#damage-report .verdict", timeout=600_000)
    lap("damage", began)

    window.screen("Take away")
    window.press("take-delta")
    window.see("#take-files", "safetensors")
    window.press("take-checkpoint")
    window.see("#take-said", "The checkpoint is written")

    began = time.monotonic()
    window.press("undo")
    window.see("#stack .proof.is-base", "have the base’s SHA-256")
    lap("undo", began)
    window.see("#header .chip.is-base")
    window.screen("Before and after")
    window.see("#sides-answers .pair")
    assert "earlier state" in window.page.evaluate(
        "getComputedStyle(document.querySelector('#sides-answers .pair'), '::after').content"
    )
    return seconds


def test_the_whole_story(window: Window) -> None:
    story(window, "The capital of {} is", "France", "Rome")


def test_form_and_yaml_stay_in_step(window: Window) -> None:
    window.compose("France", "Rome")
    window.add_line("layer: 2")
    window.page.wait_for_function(
        "() => document.querySelector('#edit-ahead')?.innerText.includes('layers.2')"
    )
    window.page.keyboard.type("2")
    window.see("#edit-ahead .notice.error", "layers 0 to 3")
    for _ in range(2):
        window.page.keyboard.press("Backspace")
    window.page.keyboard.type("one")
    window.see("#edit-valid .notice.error", "line 8")
    assert window.page.input_value("#fact-target textarea") == "Rome"


def test_switching_an_edit_off_and_on(window: Window) -> None:
    window.compose("France", "Rome")
    window.solve()
    window.page.click("#stack .switch")
    window.see("#stack .edit.off")
    window.see("#header .chip.is-base")
    window.see("#header .state", "all edits off")
    window.page.click("#stack .switch")
    window.see("#stack .edit.on")
    window.see("#header .chip.is-edited")


def test_two_windows_look_at_one_stack(
    window: Window, browser: Any, app: tuple[str, Bench]
) -> None:
    other = Window(browser, app[0])
    window.compose("France", "Rome")
    other.compose("Japan", "Madrid")
    window.press("edit-solve")
    other.press("edit-solve")
    for one in (window, other):
        one.see("#edit-result .told")
        one.see("#header .state", "2 edits")
        assert one.page.locator("#stack li.edit").count() == 2
    other.press("undo")
    window.see("#header .state", "1 edit")
    window.press("undo")
    other.see("#header .chip.is-base")
    other.close()


def test_a_cancelled_solve_changes_nothing(window: Window, app: tuple[str, Bench]) -> None:
    window.compose("France", "Rome")
    digest = app[1].prove().digest
    window.add_line("steps: 100000")
    window.add_line("stop_loss: 0.0000001")
    window.see("#edit-yaml .cm-content", "0.0000001")
    window.see("#edit-valid", "The spec is complete")
    window.press("edit-solve")
    window.see("#edit-status .progress")
    window.press("solve-cancel")
    window.see("#edit-status", "Everything is as it was")
    assert app[1].prove().digest == digest and not app[1].stack
    window.see("#header .chip.is-base")


def test_a_bad_path_is_said_and_nothing_is_lost(window: Window) -> None:
    window.write("checkpoint-path", "/no/such/place")
    window.page.keyboard.press("Enter")
    window.page.keyboard.press("Tab")
    window.press("checkpoint-load")
    window.see("#checkpoint-said .error", "no such checkpoint folder")
    window.see("#header .state", "tiny-llama-0")


@pytest.mark.parametrize("width", [390, 820])
def test_a_narrow_window(
    browser: Any, app: tuple[str, Bench], checkpoint: Path, width: int
) -> None:
    app[1].open(checkpoint)
    window = Window(browser, app[0], width)
    wide = window.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "the page scrolls sideways"
    window.compose("France", "Rome")
    window.solve()
    window.see("#stack .edit.on")
    assert window.page.evaluate("document.documentElement.scrollWidth") <= width
    window.press("undo")
    window.see("#stack .proof.is-base")
    window.close()


@pytest.mark.slow
def test_the_story_on_a_real_model_is_quick(
    browser: Any, smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(smollm2) as (url, _):
        began = time.monotonic()
        window = Window(browser, url)
        first = time.monotonic() - began
        seconds = story(window, "The capital of {} is", "France", "Rome")
        window.close()
    with capsys.disabled():
        print(f"\nfirst screen {first:.1f} s, {seconds}")
    assert first < 5
    assert seconds["first words"] < 2
    assert seconds["compared"] < 60
    assert re.match(r"\d", str(seconds["undo"]))
