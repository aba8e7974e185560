"""The console in headless Chromium: everything by keyboard, nothing asked of another machine, nothing serious for axe.

Needs Chromium (`chromium`, or what the variable CHROMIUM names) and the extra `browser`; skipped without.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from talking import LIMITS, SCENARIO, Client, client_of

from jaxsim.soc.export import NOTE
from serving import browser

api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser: pip install -e '.[browser]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra browser")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"),
]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 240_000  # ms: the first episode of each kind compiles


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(browser.make(LIMITS, {})) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Page:
    """A page of the console, and what went wrong on it."""

    def __init__(self, page: Any, port: int) -> None:
        self.page, self.url = page, f"http://127.0.0.1:{port}/"
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)

    def open(self, fragment: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(self.url + fragment)
        self.page.wait_for_selector("body[data-ready]:not([aria-busy])")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_selector("body:not([aria-busy])")

    def choose(self, **values: str) -> None:
        """With the keyboard alone: from the first field on, each by Tab and by typing what is wanted."""
        self.page.keyboard.press("n")
        for field in ("scenario", "rules", "reward", "personality", "seed", "who", "beside"):
            assert self.page.evaluate("document.activeElement.id") == field
            if field in values:
                self.page.keyboard.type(values[field])
            self.page.keyboard.press("Tab")
        assert self.page.evaluate("document.activeElement.id") == "begin"
        self.press("Enter")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    @property
    def tick(self) -> int:
        found = re.match(r"tick (\d+) of", self.text(".score"))
        assert found
        return int(found[1])


@pytest.fixture
def opened(client: Client, chromium: Any, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page; in the end nothing was asked of another machine, no error was shown, and axe finds nothing serious."""
    more = getattr(request, "param", {"viewport": WIDE, "color_scheme": "light"})
    context = chromium.new_context(reduced_motion="reduce", accept_downloads=True, **more)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = Page(context.new_page(), client.port)
    page.open()
    yield page
    outside = {x for x in page.asked if urlsplit(x).scheme not in ("blob", "about") and not x.startswith(page.url)}
    assert not outside and not page.wrong and len(page.asked) > 5
    found = axe.Axe().run(page.page).response["violations"]
    assert not [(x["id"], [n["target"] for n in x["nodes"]]) for x in found if x["impact"] in ("serious", "critical")]
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    context.close()


def downloaded(page: Page, button: str, into: Path) -> Path:
    with page.page.expect_download() as waiting:
        page.page.locator(button).focus()
        page.page.keyboard.press("Enter")
    path = into / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_whole_episode_by_keyboard_and_its_link(opened: Page, client: Client, tmp_path: Path) -> None:
    """Truth is shown, and sent, only once it is over. Then the link replays it in another tab, with the same return."""
    told: list[str] = []
    opened.page.on("response", lambda answer: told.append(answer.url) if "/episodes" in answer.url else None)
    opened.choose(scenario=SCENARIO)
    target = opened.text(".actions select option")
    opened.press("ArrowDown", "i", "ArrowUp", "o", "m", "w")
    assert (
        opened.tick >= 4 and f"isolate asset {target}" in opened.text(".log") and "investigate" in opened.text(".log")
    )
    assert opened.page.locator(f'.chip.isolated:has-text("{target}")').count() == 1
    opened.press("v")  # of an asset: no such action
    assert "is no action on" in opened.text("#status")
    assert not told and not opened.page.locator(".panel.truth").is_visible() and opened.page.url == opened.url
    opened.press("ArrowLeft")
    assert opened.tick >= 3
    while opened.page.locator(".panel.truth").is_hidden():
        opened.press("w")
    assert len(told) == 1 and "the episode is whole" in opened.text("#status").lower()
    score, link = opened.text(".score"), opened.page.url
    opened.press("l")
    assert opened.page.evaluate("navigator.clipboard.readText()") == link and "#version=" in link
    record = json.loads(downloaded(opened, "#record", tmp_path).read_text())
    whole = client.ask("POST", "/episodes", record)
    assert f"return {whole['return']:+.2f}".replace("-", "−") in score
    opened.open(link.removeprefix(opened.url))
    assert opened.text("h2") == "by hand" and f"return {whole['return']:.2f}" in opened.text("#status")
    opened.press("End")
    assert opened.text(".score") == score
    opened.page.set_input_files("#open", next(tmp_path.iterdir()))
    opened.page.wait_for_selector("h2:text-is('record')")
    assert not client.sessions.open, "the session was not closed"


def test_watched_scrubbed_and_exported(opened: Page, tmp_path: Path) -> None:
    opened.choose(scenario=SCENARIO, seed="1", who="heuristic")
    assert opened.text("h2") == "heuristic" and opened.page.locator(".stages li").count() == 10 and opened.tick == 0
    opened.press("ArrowRight", "ArrowRight", "End", "ArrowLeft")
    assert opened.tick == 79 and "compromised (truth)" in str(
        opened.page.locator("svg.map").get_attribute("aria-label")
    )
    opened.page.locator("#scrub").focus()
    opened.press("Home", "ArrowRight")
    assert opened.tick == 1
    opened.page.locator("svg.timeline").click(position={"x": 300, "y": 60})
    assert opened.tick > 5
    opened.page.locator("h2").first.focus()
    opened.press("Home", "+", "Space")
    opened.page.wait_for_selector("#run:text-is('Run')")  # it ran to the end
    assert opened.tick == 80 and opened.page.locator("#speed").input_value() == "15"
    files = zipfile.ZipFile(downloaded(opened, "#export", tmp_path)).namelist()
    assert NOTE in files and "alerts.jsonl" in files


@pytest.mark.parametrize(
    "opened",
    [{"viewport": size, "color_scheme": scheme} for size in (WIDE, NARROW) for scheme in ("light", "dark")],
    indirect=True,
    ids=["wide-light", "wide-dark", "narrow-light", "narrow-dark"],
)
def test_two_players_in_the_same_episode(opened: Page) -> None:
    opened.choose(scenario=SCENARIO, seed="1", who="heuristic", beside="monitor")
    assert opened.page.locator("h2").all_inner_texts()[:2] == ["heuristic", "monitor"]
    opened.press("End")
    scores = opened.page.locator(".score").all_inner_texts()
    assert len(scores) == 2 and scores[0] != scores[1]
    before = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.press("t", "?")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert opened.page.locator("#keys").is_visible()
    opened.press("Escape")
    opened.open(opened.page.url.removeprefix(opened.url))
    opened.press("End")
    assert opened.page.locator(".score").all_inner_texts() == scores


@pytest.mark.parametrize("width", [390, 800, 1100, 1251, 1280, 1600])
def test_no_choice_is_cut_off(opened: Page, width: int) -> None:
    """A select is as wide as its longest choice, also where a model and its adapter are among the players."""
    opened.page.set_viewport_size({"width": width, "height": 900})
    for player in ("who", "beside"):
        opened.page.locator(f"#{player}").evaluate("(x, name) => x.add(new Option(name))", "embedded + default")
    wide = """() => [...document.querySelectorAll("#setup select")].map((x) => {
        const free = x.cloneNode(true);
        free.style.width = "max-content";
        x.after(free);
        const found = [x.id, x.getBoundingClientRect().width, free.getBoundingClientRect().width];
        free.remove();
        return found;
    })"""
    found = opened.page.evaluate(wide)
    assert len(found) == 6 and [x for x in found if x[1] < x[2]] == []


def test_what_goes_wrong_is_said(opened: Page) -> None:
    for fragment in ("#version=2", "#version=2&scenario=x&rules=r&personality=p&reward=r&seed=1&episode=0&actions=M"):
        opened.open(fragment)
        assert opened.page.locator("#status.bad").count() == 1
    assert "there is no network x here" in opened.text("#status")
    opened.choose(scenario=SCENARIO, seed="x1")
    assert "no whole number" in opened.text("#status")
    opened.choose(scenario=SCENARIO, seed="1", who="seeing", rules="classic", reward="linear")
    assert "no policy was learned for rules 'classic'" in opened.text("#status")
    # That it was refused is what the browser notes, and nothing else.
    assert len(opened.wrong) == 1 and "422" in opened.wrong.pop()
