"""A whole review in a real browser: keys, trim, caption, undo, two people, a reload, and a server that is killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from curation import review
from jobs.review.store import default_place
from tests.jobs.review_samples import CLIP_FRAMES, HOSTILE, make_run

if TYPE_CHECKING:
    pass

ROOT = Path(__file__).parent.parent.parent
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
PATIENCE_S = 60.0
SHOTS = os.environ.get("REELSET_SCREENSHOTS")
"""A folder for pictures of the pages, to be looked at by a person."""

pytest.importorskip("selenium")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt install chromium chromium-driver)"
)

EVIL = """<form method=post action="HOME/decide" enctype="text/plain"><input name='{"a":"' value='"}'></form><script>
fetch("HOME/undo", {method: "POST", credentials: "include", body: '{"judgement":"0123456789ab"}',
    headers: {"Content-Type": "application/json"}})
  .then((answer) => { document.title = "in " + answer.status; }, () => { document.title = "refused"; })
</script>"""
"""A page of somebody else's that would decide in the reviewer's name."""


def until(ask: Callable[[], Any], what: str) -> Any:
    """What `ask` gives once it is true."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := ask():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


class Server:
    """`reelset review` in a process of its own."""

    def __init__(self, run: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run, self.options = run, options
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "jobs.cli", "review", str(self.run), "--subset", "picked", "--port", str(self.port)]
        with (self.run.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], cwd=ROOT, stdout=log, stderr=log)
        until(self.answers, "the server answers")

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.run.parent / "server.log").read_text()[-2000:]
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        self.process.wait(30)

    @property
    def history(self) -> list[dict[str, Any]]:
        """What is on the disk, read past the server."""
        import sqlite3

        with sqlite3.connect(f"file:{default_place(str(self.run), 'picked')}?mode=ro", uri=True) as store:
            store.row_factory = sqlite3.Row
            found = [dict(row) for row in store.execute("SELECT * FROM history ORDER BY seq")]
        store.close()
        return found


class Browser:
    """A person at a browser of their own."""

    def __init__(self, server: Server, folder: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={folder}", "--window-size=1440,900"):
            options.add_argument(flag)
        self.server = server
        self.driver: Chrome = Chrome(options=options, service=Service(str(DRIVER)))

    def close(self) -> None:
        self.driver.quit()

    def open(self, path: str) -> None:
        self.driver.get(f"http://127.0.0.1:{self.server.port}{path}")

    def js(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(code, *values)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def begin(self, name: str) -> None:
        self.open("/")
        self.driver.find_element("id", "name").send_keys(name + "\n")
        self.ready()

    @property
    def clip(self) -> str:
        return str(self.js("return document.getElementById('clip')?.dataset.clip || ''"))

    @property
    def page(self) -> str:
        return str(self.js("return document.body.dataset.page"))

    @property
    def said(self) -> str:
        return str(self.js("return document.getElementById('said').textContent"))

    def ready(self) -> str:
        """The clip that is shown, once it plays."""
        until(lambda: self.js("return document.getElementById('clip')?.dataset.ready === 'yes'"), "a clip plays")
        return self.clip

    def decide(self, *keys: str) -> str:
        """Press keys on a clip until another page is there; the clip it was."""
        before, mark = self.clip, self.js("return performance.timeOrigin")
        self.press(*keys)
        until(lambda: self.js("return performance.timeOrigin") != mark, f"a decision by {keys}; it says {self.said!r}")
        until(lambda: self.js("return document.readyState") == "complete", "the next page")
        return before

    def span(self) -> tuple[int, int]:
        """The span's frames, as the page would send them."""
        draft = self.js("return JSON.parse(sessionStorage.getItem('draft ' + document.getElementById('clip').dataset.clip))")
        return draft["start_frame"], draft["end_frame"]

    def picture(self, name: str) -> None:
        if SHOTS:
            self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("browser"))


@pytest.fixture
def site(planned: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []
    run = tmp_path / "run"
    shutil.copytree(planned, run)

    def begin(*options: str, people: tuple[str, ...] = ("Ann",)) -> tuple[Any, ...]:
        server = Server(run, *options)
        opened.append(server.stop)
        browsers = []
        for name in people:
            browsers.append(Browser(server, tmp_path / name))
            opened.append(browsers[-1].close)
            browsers[-1].begin(name)
        return server, *browsers

    yield begin
    for close in reversed(opened):
        close()


def test_a_whole_review_by_keys(site: Callable[..., Any]) -> None:
    server, ann = site()
    done: dict[str, str] = {}

    # a trim by keys, a caption, a shot type: reloaded in the middle, the draft is still there
    first = ann.ready()
    start = int(first.split("_")[1])
    ann.press(" ")
    ann.js("document.getElementById('film').pause(); document.getElementById('film').currentTime = 0.8 + 0.001")
    until(lambda: abs(ann.js("return document.getElementById('film').currentTime") - 0.801) < 1e-3, "the film is there")
    ann.press("i")
    assert ann.span() == (start + 20, start + CLIP_FRAMES)
    ann.js("document.getElementById('caption').value = ''")
    ann.press("c", "A lamp swings <b>slowly</b>.", "\ue00c")
    from selenium.webdriver import ActionChains, Keys

    ActionChains(ann.driver).key_down(Keys.SHIFT).send_keys("2").key_up(Keys.SHIFT).perform()
    ann.picture("trim")
    ann.driver.refresh()
    assert ann.ready() == first, "a reload shows the same clip"
    assert ann.js("return document.getElementById('caption').value") == "A lamp swings <b>slowly</b>."
    assert ann.js("return document.querySelectorAll('input[name=shots]:checked').length") == 1
    done[ann.decide("a")] = "accept"
    saved = server.history[-1]
    assert (saved["start_frame"], saved["end_frame"]) == (start + 20, start + CLIP_FRAMES)
    assert saved["caption"] == "A lamp swings <b>slowly</b>." and saved["shots"] == '["close_up"]' and saved["who"] == "Ann"

    # a trim with the mouse
    second = ann.ready()
    box = ann.js("const b = document.getElementById('timeline').getBoundingClientRect(); return [b.left, b.width]")
    handle = ann.driver.find_element("id", "until")
    ActionChains(ann.driver).click_and_hold(handle).move_by_offset(-round(box[1] * 0.05), 0).release().perform()
    a, b = ann.span()
    assert a == int(second.split("_")[1]) and b - a == pytest.approx(CLIP_FRAMES * 0.95, abs=2)
    done[ann.decide("a")] = "accept"
    assert server.history[-1]["end_frame"] == b

    # too short a span is not taken, and says so
    third = ann.ready()
    ann.js("document.getElementById('film').pause(); document.getElementById('film').currentTime = 6.001")
    until(lambda: abs(ann.js("return document.getElementById('film').currentTime") - 6.001) < 1e-3, "the film is there")
    ann.press("i", "a")
    until(lambda: "no sample can be made" in ann.said, "the refusal")
    assert ann.clip == third and len(server.history) == 2
    ann.press("0")
    done[ann.decide("r", "2")] = "reject"
    assert server.history[-1]["reason"] == "shaky"

    # undo, and the other way
    assert ann.ready() != third
    ann.decide("u")
    assert ann.ready() == third and ann.decide("a") == third
    done[third] = "accept"

    # an answer was lost and the person went on: the page says so, and the next press is a decision of its own
    lost = ann.ready()
    name, before = server.history[-1]["judgement"], server.history
    ann.js(f"sessionStorage.setItem('name /decide {lost} accept', '{name}')")
    ann.press("a")
    until(lambda: "decide again" in ann.said, "the refusal")
    assert server.history == before
    done[ann.decide("a")] = "accept"
    assert len(server.history) == len(before) + 1 and server.history[-1]["clip_id"] == lost

    # killed in the middle: what was decided is there, what was not says so and is taken after the restart
    fourth = ann.ready()
    before = server.history
    server.stop(signal.SIGKILL)
    assert server.history == before
    ann.press("a")
    until(lambda: "nothing was saved" in ann.said, "the failure")
    server.start()
    done[ann.decide("a")] = "accept"
    assert ann.page == "clip" and len(server.history) == len(before) + 1 and server.history[-1]["clip_id"] == fourth

    # the rest by keys alone
    for keys in (("r", "1"), ("a",), ("s",), ("a",), ("r", "8")):
        ann.ready()
        done[ann.decide(*keys)] = {"r": "reject", "a": "accept", "s": "skip"}[keys[0]]
    assert len(done) == 10
    rows = server.history
    undone = {row["undoes"] for row in rows}
    standing = {row["clip_id"]: row["action"] for row in rows if row["action"] != "undo" and row["judgement"] not in undone}
    assert standing == done
    server.stop()
    exported = review.read(str(server.run), "picked")
    assert [row["judgement"] for row in exported] == [row["judgement"] for row in rows]
    assert all(entry["level"] != "SEVERE" or "Failed to" in entry["message"] for entry in ann.driver.get_log("browser"))


def test_two_people_hostile_names_concepts_and_other_pages(site: Callable[..., Any], tmp_path: Path) -> None:
    server, ann, bob = site("--quota", "2", people=("Ann", "Bob"))
    hers, his = ann.ready(), bob.ready()
    assert hers != his
    bob.open(f"/clip/{hers}")
    bob.ready()
    bob.press("a")
    until(lambda: "Ann has this clip open" in bob.said, "the refusal")
    assert server.history == []

    # in conflict: both judge one clip, a page lists it, and who decides there settles it
    ann.decide("a")
    bob.open(f"/clip/{hers}")
    bob.ready()
    bob.decide("r", "3")
    ann.open("/people")
    assert hers in ann.driver.find_element("tag name", "main").text
    ann.driver.find_element("css selector", "main ul a").click()
    assert ann.ready() == hers
    standing = ann.driver.find_element("id", "standing").text
    assert "Ann: accept" in standing and "Bob: reject" in standing and "settles it" in standing
    ann.picture("conflict")
    ann.decide("a")
    assert server.history[-1]["settles"] == 1

    # hostile names and captions are text
    ann.open("/list?verdict=all&words=script")
    text = ann.driver.find_element("tag name", "main").text
    assert text.count(HOSTILE) >= 4 and "taken" not in ann.driver.title
    ann.driver.find_element("css selector", ".clips .name").click()
    ann.ready()
    assert HOSTILE in ann.js("return document.getElementById('caption').value") and ann.driver.title.startswith("<script>")

    # a concept grows from what was accepted, and is full at its quota
    ann.open("/concepts")
    section = f"section[data-concept='{server.history[-1]['concept']}']"
    ann.driver.find_element("css selector", f"{section} button.grow").click()
    until(lambda: "more clips wait" in ann.said, "the concept grows")
    time.sleep(1.2)
    ann.driver.find_element("css selector", f"{section} a.button").click()
    ann.ready()
    ann.decide("a")
    ann.open("/concepts")
    assert "full" in ann.driver.find_element("css selector", section).text
    ann.picture("concepts")

    # another page's script and form reach nothing
    rows = len(server.history)
    evil = tmp_path / "evil.html"
    evil.write_text(EVIL.replace("HOME", f"http://127.0.0.1:{server.port}"))
    ann.driver.get(evil.as_uri())
    until(lambda: ann.driver.title == "refused", "the other page is refused")
    ann.js("document.forms[0].submit()")
    until(lambda: "another page" in ann.driver.page_source, "the form is refused")
    assert len(server.history) == rows

    # phone and dark
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    ann.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    ann.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    for path in ("/next", "/list?verdict=all", "/concepts", "/people"):
        ann.open(path)
        assert ann.js("return document.documentElement.scrollWidth") <= 390, f"{path} is wider than a phone"
        colour = ann.js("return getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64, f"{path} is not dark: {colour}"
        ann.picture(f"phone-dark-{path.strip('/').split('?')[0]}")
