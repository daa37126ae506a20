"""The report's page in a real browser: everything is drawn, nothing is asked of the network.

As a script it writes a picture of a page's upper part, for the README:
`python tests/integration/test_report_browser.py reports/report.html docs/report.png`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.labelset import Segment
from softlabel.schemas.params import ReportParams
from softlabel.stages.report import run

if TYPE_CHECKING:
    from tests.conftest import Outcome, Project

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SECONDS = 30
# Marks of each plot that have a shape of some size, by the plot's name.
MARKS = """Object.fromEntries(Array.from(document.querySelectorAll("[data-plot]"), (box) => [
  box.dataset.plot,
  Array.from(box.querySelectorAll("svg [class^=mark-] path")).filter((path) =>
    path.getAttribute("d") && path.getBoundingClientRect().width > 0).length]))"""
LIVE_BARS = """Array.from(document.querySelector(".sample").querySelectorAll("td.live .bar"),
  (bar) => Number(bar.style.getPropertyValue("--p")))"""
LIVE_WORDS = (
    """["live-entropy", "live-top1"].map((id) => document.getElementById(id).textContent)"""
)
# The shapes of the bars that have a height.
HISTOGRAM = """Array.from(document.querySelectorAll("[data-plot=targets-top1] .mark-rect path"))
  .filter((path) => path.getBoundingClientRect().height > 0)
  .map((path) => path.getAttribute("d") + path.getAttribute("transform")).join(" | ")"""
LINE_OPACITIES = """Array.from(document.querySelectorAll("[data-plot=curve-loss] .mark-line path"),
  (path) => Number(path.getAttribute("opacity") ?? 1))"""
# The pixels of the gallery's pictures, four values each, by the key beside them.
SHOWN_PICTURES = """Object.fromEntries(Array.from(document.querySelectorAll(".sample"), (box) => {
  const picture = box.querySelector("img"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  return [box.querySelector("code").title,
          Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
}))"""
DESKTOP, PHONE = (1280, 900), (390, 844)


class Browser:
    """Chromium, spoken to by the DevTools protocol over a pipe: JSON messages that end in NUL.

    Calls answer with the protocol's result; `events` holds whatever else it said.
    """

    def __init__(self, binary: str, profile: Path) -> None:
        # Chromium reads descriptor 3 and writes descriptor 4.
        read_end, self._write = os.pipe()
        self._read, write_end = os.pipe()
        nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, read_end, 3), (os.POSIX_SPAWN_DUP2, write_end, 4)]
        command = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        actions = [*nowhere, *pipes]
        self._process = os.posix_spawn(binary, command, os.environ, file_actions=actions)
        os.close(read_end)
        os.close(write_end)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, page: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1.5,
            mobile=width < 500,
        )
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("document.querySelector('html.drawn')")

    def value(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        end = time.monotonic() + SECONDS
        while not self.value(f"!!({condition})"):
            assert self.complaints() == []
            assert time.monotonic() < end, f"never came: {condition}"
            time.sleep(0.05)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text
            )

    def hover(self, selector: str) -> None:
        found = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(f"{found}.getBoundingClientRect().toJSON()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for shift in (5, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + shift, y=y)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        if whole:
            box = self.call("Page.getLayoutMetrics")["cssContentSize"] | {"scale": 1}
            answer = self.call(
                "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=box
            )
        path.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, console messages, log entries and requests that leave the file."""
        loud = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [
            event["params"]
            for event in self.events
            if event["method"] in loud
            or (
                event["method"] == "Network.requestWillBeSent"
                and not event["params"]["request"]["url"].startswith(("file:", "data:"))
            )
        ]

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 2**20)
            assert data, "the browser went away"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


def chromium() -> str | None:
    """The browser named by CHROMIUM, or the first of the usual names on the PATH."""
    names = [os.environ.get("CHROMIUM") or "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = chromium()
    if binary is None:
        pytest.skip("needs chromium: apt-get install chromium")
    browser = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(make_world: Callable[[], ReportParams]) -> Path:
    return run(make_world()).output


@pytest.fixture
def pictures(repo_root: Path) -> Path:
    return repo_root / "build" / "screenshots"


def test_every_plot_is_drawn(browser: Browser, page: Path, pictures: Path) -> None:
    browser.open(page)
    browser.screenshot(pictures / "report.png")
    browser.screenshot(pictures / "report-top.png", whole=False)
    marks = browser.value(MARKS)
    assert set(marks) == {
        *(
            "seeds",
            "curve-loss",
            "curve-validation_accuracy",
            "curve-validation_nll",
            "information",
        ),
        *("reliability-0", "reliability-0-rows", "reliability-1", "reliability-1-rows"),
        *("teacher-before", "teacher-before-rows", "teacher-after", "teacher-after-rows"),
        *("targets-entropy", "targets-top1", "similarity"),
        *("by-class", "projection-0", "projection-1"),
    }
    assert min(marks.values()) >= 4
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_is_wider_than_the_window(
    browser: Browser, page: Path, pictures: Path, size: tuple[int, int], scheme: str
) -> None:
    browser.open(page, size, scheme)
    browser.screenshot(pictures / f"report-{size[0]}-{scheme}.png")
    assert browser.value("document.documentElement.scrollWidth") == size[0]
    assert browser.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_label_set_alone(
    browser: Browser,
    make_world: Callable[[], ReportParams],
    pictures: Path,
    size: tuple[int, int],
    scheme: str,
) -> None:
    page = run(make_world().model_copy(update={"evaluation": None, "calibration": None})).output
    browser.open(page, size, scheme)
    browser.screenshot(pictures / f"report-labels-{size[0]}-{scheme}.png")
    marks = browser.value(MARKS)
    assert set(marks) == {"targets-entropy", "targets-top1", "similarity"}
    assert min(marks.values()) >= 4
    assert browser.value("document.documentElement.scrollWidth") == size[0]
    assert browser.complaints() == []


def test_plots_take_the_scheme_s_ink(browser: Browser, page: Path) -> None:
    inks = set()
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        inks.add(browser.value("getComputedStyle(document.querySelector('svg text')).fill"))
    assert len(inks) == 2


def test_the_slider_moves_bars_and_histograms(
    browser: Browser, make_world: Callable[[], ReportParams]
) -> None:
    report = run(make_world())
    assert report.soft_targets is not None
    browser.open(report.output)
    data = json.loads(browser.value("document.getElementById('page-data').textContent"))
    stored = np.frombuffer(base64.b64decode(data["samples"][0]["logits"]), "<f2")
    known = {one.temperature: one for one in report.soft_targets.temperatures}
    drawn: list[str] = []
    browser.value("document.getElementById('temperature').focus()")
    for presses, expected in ((0, 4.0), (5, 5.0), (10, 10.0)):
        for _ in range(presses):
            browser.press("ArrowRight", 39)
        assert browser.value("document.getElementById('temperature-value').value") == (
            f"T = {expected:g}"
        )
        bars = browser.value(LIVE_BARS)
        np.testing.assert_allclose(bars, softmax(stored, expected), atol=1e-4)
        said = [f"{known[expected].entropy:.3f}", f"{100 * known[expected].top1:.1f}"]
        assert browser.value(LIVE_WORDS) == said
        browser.wait_for(f"{HISTOGRAM} !== {json.dumps(drawn[-1] if drawn else '')}")
        drawn.append(browser.value(HISTOGRAM))
        filled = sum(rows > 0 for rows in known[expected].top1_rows)
        assert browser.value(f"{HISTOGRAM}.split(' | ').filter(Boolean).length") == filled
    assert browser.complaints() == []


def test_the_report_of_the_demo(
    browser: Browser, finished_demo: tuple[Project, Outcome], pictures: Path
) -> None:
    demo, _ = finished_demo
    page = demo.root / "reports" / "report.html"
    browser.open(page)
    browser.screenshot(pictures / "report-demo.png")
    marks = browser.value(MARKS)
    assert set(marks) == {
        *("seeds", "by-class", "information", "targets-entropy", "targets-top1"),
        *("curve-loss", "curve-validation_accuracy", "curve-validation_nll", "similarity"),
        *(f"reliability-{run}{part}" for run in range(3) for part in ("", "-rows")),
        *(f"teacher-{when}{part}" for when in ("before", "after") for part in ("", "-rows")),
        *(f"projection-{run}" for run in range(3)),
    }
    assert min(marks.values()) >= 1
    before = browser.value(LIVE_BARS), browser.value(HISTOGRAM)
    browser.value("document.getElementById('temperature').focus()")
    browser.press("ArrowRight", 39)
    browser.wait_for(f"{HISTOGRAM} !== {json.dumps(before[1])}")
    assert browser.value(LIVE_BARS) != before[0]
    shown = browser.value(SHOWN_PICTURES)
    assert len(shown) == 12
    source = open_source(demo.root / "data" / "train")
    whole = [Segment(source=file.name, first=0, rows=file.rows) for file in source.files]
    samples = source.read(whole)
    wanted = dict(zip(samples.keys.to_pylist(), samples.inputs, strict=True))
    for key, pixels in shown.items():
        np.testing.assert_array_equal(np.reshape(pixels, (8, 8, 4))[:, :, :1], wanted[key])
    assert browser.complaints() == []


def test_the_legend_fades_a_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = browser.value(LINE_OPACITIES)
    browser.value("document.querySelector('.legend button').focus()")
    browser.press("Enter", 13, "\r")
    browser.wait_for(f"{LINE_OPACITIES}.join() !== {json.dumps(','.join(map(str, before)))}")
    assert browser.value(LINE_OPACITIES) == [0.12, 1]
    assert browser.complaints() == []


def test_hostile_names_run_nothing(
    browser: Browser, hostile_world: ReportParams, pictures: Path
) -> None:
    browser.open(run(hostile_world).output, PHONE)
    browser.screenshot(pictures / "report-hostile.png")
    assert browser.value("document.documentElement.scrollWidth") == PHONE[0]
    assert browser.value("document.querySelector('h1').textContent") == hostile_world.title
    browser.hover("[data-plot=seeds] .mark-symbol path")
    browser.wait_for("document.querySelector('.vg-tooltip.visible')")
    assert "<img src=x" in browser.value("document.querySelector('.vg-tooltip').textContent")
    assert browser.value("window.pwned") is None
    assert browser.complaints() == []


def test_a_thousand_classes_and_fifty_thousand_samples(
    browser: Browser, large_world: ReportParams, pictures: Path
) -> None:
    report = run(large_world)
    assert report.soft_targets is not None
    assert report.soft_targets.of_rows == 50_000
    assert report.bytes < 15 * 10**6
    browser.open(report.output, PHONE)
    browser.screenshot(pictures / "report-large.png")
    marks = browser.value(MARKS)
    assert {"bytes", "by-class", "similarity", "targets-entropy"} <= set(marks)
    assert min(marks.values()) >= 2
    assert browser.value("document.documentElement.scrollWidth") == PHONE[0]
    assert browser.complaints() == []


def picture_of_top(page: Path, picture: Path, scheme: str = "light") -> None:
    """Write the first screenful of `page` as a PNG."""
    binary = chromium()
    assert binary, "needs chromium: apt-get install chromium"
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(binary, Path(profile))
        browser.open(page, scheme=scheme)
        browser.screenshot(picture, whole=False)
        browser.close()


if __name__ == "__main__":
    picture_of_top(Path(sys.argv[1]), Path(sys.argv[2]))
