"""The report: everything is in the page, nothing comes from elsewhere, and in a real browser the controls do what they say."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import parse
from core.data import load_data
from core.errors import UserError
from core.runs import load_run, sample_images
from eval.report.document import LIGHT, measure_words, png_uri, readable, write_report
from eval.report.training import loss_by_level, prices
from eval.rows import append_row, read_rows
from eval.sweep import run_sweep
from eval.sweep_config import SweepConfig
from tests.tiny import train_tiny

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STEPS = [1, 2, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """curves.jsonl of a teacher, its consistency student and a flow, with the runs beside it and the page made from them."""
    folder = tmp_path_factory.mktemp("measured")
    train_tiny(folder / "teacher", images=640)
    student = {"teacher": str(folder / "teacher"), "steps_start": 4, "steps_end": 8}
    train_tiny(folder / "student", "consistency", images=320, method=student)
    train_tiny(folder / "flow", "rectified-flow", path="rectified", prediction="u", images=320)
    values = {
        "out": str(folder / "curves.jsonl"),
        "runs": str(folder),
        "extractor": "digits-cnn",
        "n": 30,
        "bootstrap": 4,
        "device": "cpu",
        "cache": str(folder / "cache"),
        "entries": [
            {"run": "teacher", "samplers": ["ddim", "heun"], "steps": STEPS},
            {"run": "student", "samplers": ["jump"], "steps": [1, 2]},
            {"run": "flow", "samplers": ["euler"], "steps": STEPS},
        ],
    }
    run_sweep(parse(SweepConfig, values, "test"))
    # Another protocol, and text that would end the block of data if it were written as it is.
    row = next(r for r in read_rows(folder / "curves.jsonl") if r["method"] == "ddpm")
    other = {"metric": "FID", "extractor": "inception-v3-compat", "n": 50_000, "device": "</script><b>"}
    append_row(folder / "curves.jsonl", row | other)
    write_report(folder / "curves.jsonl", folder / "report.html", steps=[1, 4], images=3)
    return folder


def data_of(page: Path) -> dict:
    blocks = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert len(blocks) == 1
    return json.loads(blocks[0])


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_everything_measured_is_in_the_page(folder):
    data = data_of(folder / "report.html")
    rows = read_rows(folder / "curves.jsonl")
    assert all(0 <= row.pop("class_distance") <= 1 for row in data["rows"])  # what the page adds
    assert data["rows"] == rows
    points = [data["rows"][p["row"]] for group in data["groups"] for p in group["points"]]
    assert sorted(map(json.dumps, points)) == sorted(json.dumps(r) for r in rows if r["sampler"])
    assert [g["measures"]["fid"] for g in data["groups"]] == ["FD@30", "FID"]
    assert data["series"][0]["name"] == "DDPM teacher, ddim"
    assert len(data["series"]) == 4
    configs = {c["name"]: c["text"] for c in data["configs"]}
    for run in ("teacher", "student", "flow"):
        assert configs[f"{run}/config.yaml"] == (folder / run / "config.yaml").read_text()
        assert len(data["losses"][run]["moments"][-1]["loss"]) == 8
    cost = {one["run"]: one for one in data["prices"]}
    assert cost["student"]["inherited_evals"] == cost["teacher"]["train_evals"] == 640 * 3
    assert cost["student"]["train_evals"] == next(r["train_evals"] for r in rows if r["run"] == "student")


def test_pictures_are_the_samples(folder):
    data = data_of(folder / "report.html")
    assert {(s["series"], s["steps"]) for s in data["strips"]} == {(s, n) for s in range(4) for n in STEPS} - {(2, 4)}
    for strip in data["strips"]:
        assert decoded(strip["image"]).shape == (8, 16 * 8)
    tracks = data["trajectories"]
    assert (tracks["side"], tracks["images"], len(tracks["labels"])) == (8, 3, 3) and not tracks["notes"]
    assert {(f["series"], f["steps"]) for f in tracks["films"]} == {(0, 1), (0, 4), (1, 1), (1, 4), (2, 1), (3, 1), (3, 4)}
    sheets = {key: decoded(uri) for key, uri in tracks["sheets"].items()}
    digits = load_data("digits", "train")
    for film in tracks["films"]:
        assert film["forward_times"][0] == film["times"][-1] == 0 and film["forward_times"][-1] == film["times"][0] == 1
        assert film["taken"] == list(range(film["steps"] + 1)) and len(film["times"]) == film["steps"] + 1
        for kind, times in (("forward", film["forward_times"]), ("back", film["times"])):
            for key in (kind, f"{kind}_guess"):
                assert sheets[film[key]].shape == (3 * 8, 8 * len(times))
        out, back = sheets[film["forward"]], sheets[film["back"]]
        assert any((out[:8, :8] == image.numpy()).all() for image in digits.images[:, 0])
        # The way back begins in the noise where the way out ended; vp-cosine leaves a trace of the image there.
        assert np.abs(out[:, -8:].astype(int) - back[:, :8]).max() <= (2 if film["path"] == "vp-cosine" else 0)
        assert (back[:, -8:] == sheets[film["back_guess"]][:, -8:]).all()
    film = next(f for f in tracks["films"] if (f["series"], f["steps"]) == (3, 4))
    labels = torch.tensor(tracks["labels"])
    expected = sample_images(load_run(folder / "flow"), "euler", 4, torch.arange(3), seed=0, label=labels)
    assert (sheets[film["back"]][:, -8:] == np.concatenate(list(expected[:, 0].numpy()))).all()


def test_nothing_is_loaded_from_elsewhere(folder):
    page = (folder / "report.html").read_text()
    ours = page[: page.index("* plotly.js v")] + page[page.rindex("<script>") :]
    assert not re.search(r"""(src|href|action|srcset)\s*=\s*["']?\s*(https?:)?//""", ours)
    assert not re.search(r"""(@import|url\(|import\s*\(|\bfetch\(|XMLHttpRequest|sendBeacon)""", ours)
    assert "<link" not in ours and "http://www.w3.org/2000/svg" in ours
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:" in ours
    assert "@@" not in ours and len(re.findall(r"<script[^>]*\ssrc", page)) == 0


def test_the_same_input_gives_the_same_page(folder, tmp_path):
    again = write_report(folder / "curves.jsonl", tmp_path / "report.html", steps=[1, 4], images=3)
    assert again.read_bytes() == (folder / "report.html").read_bytes()


def test_without_runs_the_page_says_so(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "curves.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    data = data_of(write_report(tmp_path / "curves.jsonl", tmp_path / "report.html"))
    assert data["trajectories"] == {"missing": "The folders of the runs were not found."}
    assert data["strips"] == data["configs"] == [] and data["losses"] == {} and len(data["rows"]) == 13


def test_other_weights_are_mentioned(folder, tmp_path):
    runs = shutil.copytree(folder, tmp_path / "runs")
    weights = next((runs / "flow" / "checkpoints").glob("*/ema.safetensors"))
    shutil.copy(weights.with_name("raw.safetensors"), weights)
    shutil.rmtree(runs / "student" / "checkpoints")
    data = data_of(write_report(folder / "curves.jsonl", tmp_path / "report.html", runs, [1], 1))
    assert len(data["trajectories"]["notes"]) == 2
    assert "student has no checkpoint" in data["trajectories"]["notes"][0]
    assert "flow are not those that were measured" in data["trajectories"]["notes"][1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere does not exist: python -m scripts.evaluate writes it"),
        (["{folder}", "--runs", "nowhere"], "--runs nowhere holds none of the runs teacher, student, flow"),
        (["{folder}", "--steps", "1,x"], "--steps 1,x: give numbers"),
        (["{folder}", "--images", "-1"], "--images -1: give 0 to 64"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, words):
    command = [sys.executable, "-m", "scripts.report", *(a.format(folder=folder) for a in arguments)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_only_a_floor(folder, tmp_path):
    append_row(tmp_path / "curves.jsonl", read_rows(folder / "curves.jsonl")[0])
    with pytest.raises(UserError, match="no measured points"):
        write_report(tmp_path / "curves.jsonl", tmp_path / "report.html")


def test_names_of_measures():
    row = {"metric": "FID", "n": 50_000, "extractor": "inception-v3-compat"}
    assert measure_words(row) == "FID" and measure_words(row | {"n": 5000}) == "FID@5000"
    ours = row | {"metric": "FD"}
    assert [measure_words(ours, key) for key in ("fid", "kid", "recall")] == ["FD@50000", "KD@50000", "recall@50000"]
    assert measure_words(ours, "fid_infinity") == "FD∞"


def test_colours_can_be_read():
    assert readable("#D55E00", LIGHT) == "#D55E00" and readable("#222222", (0, 0, 0)) == "#DDDDDD"
    assert readable("#F0E442", LIGHT) != "#F0E442"
    assert decoded(png_uri(torch.arange(12, dtype=torch.uint8).view(3, 2, 2))).shape == (2, 2, 3)


def test_prices_follow_the_chain():
    def row(run: str, teacher: str | None, evals: float) -> dict:
        values = {"run": run, "method": run, "teacher": teacher, "sampler": "ddim"}
        return values | {"train_images": 1, "train_evals": evals, "train_seconds": 1}

    rows = [row("c", "b", 5.0), row("b", "a", 7.0), row("a", None, 11.0), row("b", "a", 3.0), row("d", "lost", 1.0)]
    found = {one["run"]: (one["train_evals"], one["inherited_evals"], one["complete"]) for one in prices(rows, None)}
    assert found == {"a": (11.0, 0, True), "b": (7.0, 11.0, True), "c": (5.0, 18.0, True), "d": (1.0, 0, False)}


def test_loss_of_stages(tmp_path):
    lines = [{"images": i, "stage": "ab"[i > 3], "loss_by_t": [float(i), None if i < 4 else 2.0 * i]} for i in range(1, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images": 7, "sta')
    found = loss_by_level(tmp_path)
    assert found["moments"] == [{"name": "a", "loss": [3.0, None]}, {"name": "b", "loss": [6.0, 12.0]}]
    assert found["images"] == [1, 2, 3, 4, 5, 6] and loss_by_level(tmp_path / "none") is None


# In a real browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -r requirements-test.txt")
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
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


class Reader:
    """The page, open in the browser."""

    def __init__(self, driver, page: Path, width: int = 1400, scheme: str = "light"):
        self.driver = driver
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
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
    assert reader.picture("grid") != seen[0] and "Rectified flow, euler, 4 steps, NFE 4: FD@30" in reader.text("grid-words")

    reader.press("walk", "\ue011")  # Home
    states, guesses = [reader.picture("state")], [reader.picture("guess")]
    assert states == guesses  # without noise there is nothing to guess
    for _ in range(16 + 4):  # as many as the teacher's last film has, to noise and back
        reader.press("walk", right)
        states.append(reader.picture("state"))
        guesses.append(reader.picture("guess"))
    assert len(set(states)) == 21 and len(set(guesses)) > 15 and states[-1] == guesses[-1]
    assert "Done: 4 steps, 4" in reader.text("walk-words") and reader.text("walk-now") == "back, t = 0.000"
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
    assert reader.js(axes) == ["network evaluations an image (counted)", "FD@30, digits-cnn features", "log"]
    for x in ("steps", "seconds_per_image", "train_evals"):
        for y in ("kid", "precision", "recall"):
            reader.choose("x", x)
            reader.choose("y", y)
            assert len(reader.lines()) == 5
    assert reader.js(axes)[1:] == ["recall@30", "linear"]
    reader.choose("y", "fid")
    reader.choose("x", "nfe")
    reader.js("document.getElementById('plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    point = browser.find_elements(By.CSS_SELECTOR, "#plot .points path")[-1]
    ActionChains(browser).move_to_element(point).perform()
    label = browser.find_element(By.CSS_SELECTOR, "#plot .hoverlayer").text
    row = next(r for r in read_rows(folder / "curves.jsonl") if r["run"] == "flow" and r["steps"] == 4)
    expected = ["rectified flow, euler", "FD@30", "n = 30, seed 0", "digits-cnn", "digits train", "half-life 320 images"]
    expected += [f"{row['fid']:.0f}"[:2], row["extractor_sha256"][:8], row["commit"][:8], "4 steps, 4 evaluations"]
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
    assert reader.js(f"return [...document.querySelectorAll('input, select, button')].{nameless}") == 0
    loaded = reader.js("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == [] and reader.complaints() == []


def test_the_reader_may_choose_the_colours(browser, folder):
    reader = Reader(browser, folder / "report.html", scheme="light")
    line = "return document.getElementById('plot').data[1].line.color"
    light = reader.js(line)
    reader.click("#theme input", 2)
    assert reader.js("return document.documentElement.hasAttribute('data-dark')") and reader.js(line) != light
    reader.click("#theme input", 0)
    assert reader.js(line) == light and reader.complaints() == []


def test_the_page_without_runs_opens(browser, folder, tmp_path, monkeypatch):
    shutil.copy(folder / "curves.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    reader = Reader(browser, write_report(tmp_path / "curves.jsonl", tmp_path / "report.html"), width=400)
    assert "folders of the runs were not found" in reader.text("trajectories-body")
    assert "--runs" in reader.text("trajectories-body") and "kept no samples" in reader.text("samples-note")
    assert reader.js(OVERFLOWING) == [] and reader.complaints() == []
