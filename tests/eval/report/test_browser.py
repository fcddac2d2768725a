"""The report in a real browser: the controls do what they say, and it can be read on any screen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eval.curves_file import read_rows
from eval.report.document import write_report
from lab import load

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium: pip install -r requirements-test.txt"
    )
    from selenium.webdriver.chrome.service import Service

    driver_file = shutil.which("chromedriver")
    if driver_file is None:
        pytest.skip("Chromium without its driver: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-dev-shm-usage"
    for switch in [*switches.split(), "disable-component-update", "disable-sync"]:
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_file))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


class Reader:
    """The page, open in the browser."""

    def __init__(self, driver, page: Path, width: int = 1400, scheme: str = "light"):
        self.driver = driver
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get_log("browser")
        driver.get(page.as_uri())
        self.settle()

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def settle(self) -> None:
        """Waits for the pictures that are being decoded and two frames."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "const painted = () => requestAnimationFrame(() => requestAnimationFrame(done));"
            "Promise.all([...decoded.values()]).then(() => setTimeout(painted, 60));"
        )

    def picture(self, name: str) -> str:
        return self.js("return document.getElementById(arguments[0]).toDataURL()", name)

    def press(self, name: str, key: str, times: int = 1) -> None:
        """Keys on a control, as a reader without a mouse would."""
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.ID, name).send_keys(key * times)
        self.settle()

    def click(self, selector: str, index: int = 0) -> None:
        self.js("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, index)
        self.settle()

    def choose(self, name: str, value: str) -> None:
        change = "e.value = arguments[1]; e.dispatchEvent(new Event('change', {bubbles: true}))"
        self.js(f"const e = document.getElementById(arguments[0]); {change}", name, value)
        self.settle()

    def text(self, name: str) -> str:
        return self.js("return document.getElementById(arguments[0]).textContent", name)

    def lines(self) -> list[str]:
        return self.js("return document.getElementById('plot').data.map((trace) => trace.name)")

    def complaints(self) -> list:
        return self.driver.get_log("browser")


def test_sliders_move_the_pictures(browser, folder):
    reader = Reader(browser, folder / "report.html")
    left, right = "\ue012", "\ue014"  # arrow keys
    seen = [reader.picture("grid")]
    reader.press("steps", left)
    seen.append(reader.picture("grid"))
    reader.press("steps", left)
    seen.append(reader.picture("grid"))
    assert len(set(seen)) == 3 and reader.text("steps-now") == "1 step"
    reader.press("steps", right, 2)
    assert reader.picture("grid") == seen[0]
    reader.click("#strips input", 2)  # the student, which has no samples at 4 steps
    assert "was not measured at 4 steps" in reader.text("grid-words")
    reader.click("#strips input", 3)
    assert reader.picture("grid") != seen[
        0
    ] and "Rectified flow, 4 steps, NFE 4: FD@30" in reader.text("grid-words")

    reader.press("walk", "\ue011")  # Home
    states, guesses = [reader.picture("state")], [reader.picture("guess")]
    assert states == guesses  # without noise there is nothing to guess
    for _ in range(16 + 4):  # as many as the teacher's last film has, to noise and back
        reader.press("walk", right)
        states.append(reader.picture("state"))
        guesses.append(reader.picture("guess"))
    assert len(set(states)) == 21 and len(set(guesses)) > 15 and states[-1] == guesses[-1]
    assert (
        "Done: 4 steps, 4" in reader.text("walk-words")
        and reader.text("walk-now") == "back, t = 0.000"
    )
    reader.click("#walk-methods input", 3)
    assert reader.picture("state") != states[-1]
    before = reader.picture("state")
    reader.click("#walk-images input", 1)
    assert reader.picture("state") != before
    reader.click("#walk-steps input", 0)
    assert "Done: 1 step, 1 " in reader.text("walk-words")
    assert reader.complaints() == []


def test_the_curve_answers(browser, folder):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    reader = Reader(browser, folder / "report.html")
    assert len(reader.lines()) == 5 and reader.lines()[0] == "floor: digits test"
    reader.click("#method-list input", 0)
    assert "DDPM teacher, ddim" not in reader.lines() and len(reader.lines()) == 4
    reader.click("#none")
    assert reader.lines() == ["floor: digits test"]
    reader.click("#all")
    axes = "const l = document.getElementById('plot').layout; return [l.xaxis.title.text, l.yaxis.title.text, l.yaxis.type]"
    assert reader.js(axes) == [
        "network evaluations per image (counted)",
        "FD@30, digits-cnn features",
        "log",
    ]
    for x in ("steps", "seconds_per_image", "train_evals"):
        for y in ("kid", "precision", "recall"):
            reader.choose("x", x)
            reader.choose("y", y)
            assert len(reader.lines()) == 5
    assert reader.js(axes)[1:] == ["recall@30", "linear"]
    reader.choose("y", "fid")
    reader.choose("x", "nfe")
    reader.js(
        "document.getElementById('plot').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    point = browser.find_elements(By.CSS_SELECTOR, "#plot .points path")[-1]
    ActionChains(browser).move_to_element(point).perform()
    label = browser.find_element(By.CSS_SELECTOR, "#plot .hoverlayer").text
    row = next(r for r in read_rows(folder / "curves.jsonl") if r.run == "flow" and r.steps == 4)
    expected = [
        "rectified flow",
        "FD@30",
        "n = 30, seed 0",
        "digits-cnn",
        "digits train",
        f"half-life {row.ema_half_life:.0f} images",
    ]
    expected += [
        f"{row.fid:.0f}"[:2],
        row.extractor_sha256[:8],
        row.commit[:8],
        "4 steps, 4 evaluations",
    ]
    for words in expected:
        assert words in label, (words, label)
    reader.choose("group", "1")
    assert reader.js(axes)[1] == "FID, inception-v3-compat features" and len(reader.lines()) == 1
    reader.choose("loss-run", "flow")
    reader.click("#loss-view input", 1)
    assert reader.js("return document.getElementById('loss-plot').data.length") == 8
    assert reader.complaints() == []


OVERFLOWING = """
const width = document.documentElement.clientWidth, found = [];
for (const node of document.querySelectorAll("body *")) {
  const box = node.getBoundingClientRect();
  if (!box.width || node.closest(".scroll, pre, .hidden, svg")) continue;
  if (box.right > width + 1 || box.left < -1) found.push(node.outerHTML.slice(0, 80));
}
if (document.documentElement.scrollWidth > width) found.push(`page ${document.documentElement.scrollWidth} > ${width}`);
return found;
"""

# WCAG's contrast of every visible text with the first opaque ground behind it.
FAINT = """
const read = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const shine = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
const written = (node) => [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
const found = [];
for (const node of document.querySelectorAll("body *")) {
  if (node.closest("svg, script, style, [hidden]") || !written(node)) continue;
  let ground = node;
  while (ground && (read(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 1) ground = ground.parentElement;
  const colours = [getComputedStyle(node).color, getComputedStyle(ground ?? document.body).backgroundColor];
  const [a, b] = colours.map((c) => shine(read(c)));
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) found.push([node.outerHTML.slice(0, 60), contrast]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_readable(browser, folder, width, scheme):
    reader = Reader(browser, folder / "report.html", width, scheme)
    for selector in ("#curve summary", "#config-list summary"):
        reader.click(selector)
    assert reader.js(OVERFLOWING) == []
    assert reader.js(FAINT) == []
    shine = "return Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert (reader.js(shine) > 200) == (scheme == "light")
    # Every control has a name to be called by.
    nameless = "filter((e) => !(e.labels?.length || e.textContent || e.ariaLabel)).length"
    assert (
        reader.js(f"return [...document.querySelectorAll('input, select, button')].{nameless}") == 0
    )
    loaded = reader.js("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [
        name for name in loaded if not name.startswith("data:")
    ] == [] and reader.complaints() == []


def test_the_reader_may_choose_the_colours(browser, folder):
    reader = Reader(browser, folder / "report.html", scheme="light")
    line = "return document.getElementById('plot').data[1].line.color"
    light = reader.js(line)
    reader.click("#theme input", 2)
    assert (
        reader.js("return document.documentElement.hasAttribute('data-dark')")
        and reader.js(line) != light
    )
    reader.click("#theme input", 0)
    assert reader.js(line) == light and reader.complaints() == []


def test_the_page_without_runs_opens(browser, folder, tmp_path, monkeypatch):
    shutil.copy(folder / "curves.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    reader = Reader(
        browser, write_report(tmp_path / "curves.jsonl", tmp_path / "report.html", load), width=400
    )
    assert "folders of the runs were not found" in reader.text("trajectories-body")
    assert "--runs" in reader.text("trajectories-body") and "kept no samples" in reader.text(
        "samples-note"
    )
    assert reader.js(OVERFLOWING) == [] and reader.complaints() == []
