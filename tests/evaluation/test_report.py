"""The report, opened in a browser: it draws, sorts, plays and prints, fetches nothing and believes no name."""

import base64
import math
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from evaluation.evaluations import RATE, TARGETS, made_up_evaluation, made_up_track
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from umx_model.evaluation import spectrograms
from umx_model.evaluation.report import write_report
from umx_model.evaluation.scores import Evaluation

NASTY = "</script><script>alert(1)</script> \"Q\" & 'A' $title <b>"
NAMES = ["Band 10 - a", "Band 9 - b", NASTY, "Ärzte - c"]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --autoplay-policy=no-user-gesture-required"
)


@pytest.fixture(scope="module")
def browser():
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_window_size(1200, 900)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def evaluation():
    evaluation = made_up_evaluation(len(NAMES), NAMES)
    # Of one track there is no score, of another no baseline.
    silent = made_up_track(NAMES[1], 1)
    silent = replace(silent, windows={metric: np.full_like(rows, np.nan) for metric, rows in silent.windows.items()})
    first, _, *others = evaluation.tracks
    return replace(evaluation, tracks=[first, silent, *others], baseline=evaluation.baseline[:3])


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(str(path), evaluation)
    return path


@pytest.fixture
def opened(browser, page):
    """The report in the browser, which must have nothing to complain about."""
    return opened_in(browser, page)


def opened_in(browser, path):
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    return browser


def texts(browser, selector):
    return [element.get_attribute("textContent") for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def column(browser, number):
    return texts(browser, f"#tracks-table tbody td:nth-child({number})")


def head(browser, name):
    (found,) = (
        element
        for element in browser.find_elements(By.CSS_SELECTOR, "#tracks-table thead button")
        if element.text.split(" ")[0] == name
    )
    return found


def test_figures_are_those_of_the_scores(opened, evaluation):
    rows = opened.execute_script(
        "return [...document.querySelectorAll('#summary-table tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert rows[0] == ["target", "SDR", "ISR", "SIR", "SAR", "mixture", "gain", "baseline", "change"]
    assert [row[0] for row in rows[1:]] == list(TARGETS)
    for index, target in enumerate(TARGETS):
        by_track = [
            np.nanmedian(track.windows["SDR"][:, index]) for track in evaluation.tracks if track.name != NAMES[1]
        ]
        of_baseline = [np.nanmedian(track.windows["SDR"][:, index]) for track in evaluation.baseline]
        sdr, baseline = statistics.median(by_track), statistics.median(of_baseline)
        assert float(rows[1 + index][1]) == pytest.approx(sdr, abs=0.0051), target
        assert float(rows[1 + index][8]) == pytest.approx(sdr - baseline, abs=0.0051), target
    # A row per track and target; those without a score or a baseline have a dash.
    assert column(opened, 1) == [name for name in NAMES for _ in TARGETS]
    assert column(opened, 3)[4:8] == ["\N{EN DASH}"] * 4
    assert column(opened, 9)[12:] == ["\N{EN DASH}"] * 4


def test_plots_show_the_scores(opened, evaluation):
    plots = opened.find_elements(By.CSS_SELECTOR, ".plot .main-svg:first-child")
    assert len(plots) == 6  # summary, four metrics, over time
    assert all(plot.size["width"] > 300 and plot.size["height"] > 150 for plot in plots)
    assert len(opened.find_elements(By.CSS_SELECTOR, '[data-figure="SDR"] .box')) == 3 * len(TARGETS)
    script = "return document.querySelector('[data-figure=ISR]').calcdata[1].map(box => box.med)"
    drawn = opened.execute_script(script)
    for index, median in enumerate(drawn):
        scores = [np.nanmedian(track.windows["ISR"][:, index]) for track in evaluation.tracks if track.name != NAMES[1]]
        assert median == pytest.approx(statistics.median(scores), abs=0.006)


def test_the_table_sorts(opened):
    assert column(opened, 1)[::4] == NAMES
    head(opened, "SDR").click()
    shown = column(opened, 3)
    figures = [float(text) for text in shown if text != "\N{EN DASH}"]
    assert figures == sorted(figures, reverse=True)
    assert shown[-4:] == ["\N{EN DASH}"] * 4
    head(opened, "SDR").click()
    shown = column(opened, 3)
    assert [float(text) for text in shown[:12]] == sorted(figures)
    assert shown[-4:] == ["\N{EN DASH}"] * 4
    assert head(opened, "SDR").find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    head(opened, "track").click()
    # Numbers in names count, and accents stand with their letters.
    assert column(opened, 1)[::4] == [NASTY, "Ärzte - c", "Band 9 - b", "Band 10 - a"]


def test_the_table_filters(opened):
    Select(opened.find_element(By.ID, "target-filter")).select_by_visible_text("bass")
    rows = opened.find_elements(By.CSS_SELECTOR, "#tracks-table tbody tr")
    assert [row.get_attribute("data-target") for row in rows if row.is_displayed()] == ["bass"] * len(NAMES)
    Select(opened.find_element(By.ID, "target-filter")).select_by_visible_text("all")
    assert all(row.is_displayed() for row in rows)


def test_a_click_on_a_track_shows_it_over_time(opened, evaluation):
    opened.find_elements(By.CSS_SELECTOR, "#tracks-table tbody button")[-1].click()
    assert Select(opened.find_element(By.ID, "track")).first_selected_option.text == NAMES[3]
    script = "return document.querySelector('[data-figure=over-time]').data.map(trace => [trace.name, trace.y])"
    traces = opened.execute_script(script)
    assert [name for name, _ in traces] == ["mixture", "estimates"] * len(TARGETS)  # it has no baseline
    expected = evaluation.tracks[3].windows["SDR"][:, 0]
    assert [math.nan if y is None else y for y in traces[1][1]] == pytest.approx(expected, abs=0.0051, nan_ok=True)
    Select(opened.find_element(By.ID, "track")).select_by_index(0)
    assert len(opened.execute_script(script)) == 3 * len(TARGETS)


def test_audio_plays_one_at_a_time_and_from_where_the_picture_is_clicked(opened):
    audio = opened.find_elements(By.TAG_NAME, "audio")
    assert len(audio) == 2 * 4 * 3
    wait = WebDriverWait(opened, 20)
    wait.until(lambda _: opened.execute_script("return arguments[0].readyState >= 1", audio[0]))
    assert opened.execute_script("return arguments[0].duration", audio[0]) == pytest.approx(5.0, abs=0.05)
    opened.execute_script("arguments[0].play()", audio[0])
    wait.until(lambda _: opened.execute_script("return arguments[0].currentTime > 0.2", audio[0]))
    picture = opened.find_elements(By.CSS_SELECTOR, ".picture")[1]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", picture)
    picture.click()  # in the middle
    wait.until(lambda _: opened.execute_script("return arguments[0].currentTime > 2.6", audio[1]))
    assert opened.execute_script("return arguments[0].paused", audio[0])
    left = float(picture.find_element(By.CSS_SELECTOR, ".cursor").value_of_css_property("left")[:-2])
    assert 0.5 <= left / picture.size["width"] <= 1.0
    assert opened.execute_script("return [...document.querySelectorAll('audio')].filter(a => a.error).length") == 0


def test_it_fetches_nothing(opened):
    assert (
        opened.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))"
        )
        == []
    )
    opened.execute_script(
        "addEventListener('securitypolicyviolation', event => { window.refused = event.violatedDirective });"
        "fetch('https://example.org/').catch(() => {})"
    )
    refused = WebDriverWait(opened, 10).until(lambda _: opened.execute_script("return window.refused"))
    assert refused == "connect-src"


def test_names_are_text(opened):
    assert NASTY in texts(opened, "#track option")
    assert opened.execute_script("return document.scripts.length") == 3
    assert opened.find_elements(By.CSS_SELECTOR, "td b") == []


@pytest.mark.parametrize("width", [1200, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_wide_and_narrow(browser, page, scheme, width):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        opened_in(browser, page)
        page_light, *inks = browser.execute_script(
            """
            const light = (colour) => {
              const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
              return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
            };
            const all = (selector, name) =>
              [...document.querySelectorAll(selector)].map(e => light(getComputedStyle(e)[name]));
            return [...all('body', 'backgroundColor'), ...all('body, .note, td', 'color'),
                    ...all('.plot .xtick text, .plot .ytick text, .plot .x4tick text, .plot .y4tick text', 'fill'),
                    ...all('.plot .ytitle, .plot .y4title, .plot .x4title, .plot .legendtext', 'fill')];
            """
        )
        assert (page_light > 0.9) if scheme == "light" else (page_light < 0.2)
        assert all(abs(ink - page_light) > 0.4 for ink in inks)
        # Nothing sticks out; wide tables scroll in themselves.
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_prints_on_white_at_the_width_of_paper(opened):
    before = opened.execute_script("return document.querySelector('.plot .main-svg').clientWidth")
    opened.execute_script(
        "addEventListener('beforeprint', () => { window.printed = "
        "[...document.querySelectorAll('.plot .main-svg:first-child')].map(svg => svg.clientWidth) })"
    )
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") == 7
    assert max(opened.execute_script("return window.printed")) <= 670
    WebDriverWait(opened, 10).until(
        lambda _: opened.execute_script("return document.querySelector('.plot .main-svg').clientWidth") == before
    )


def test_an_evaluation_of_little(browser, tmp_path):
    """One track, SDR alone, no baseline, no excerpts, no verdict."""
    track = made_up_track("song", 0, windows=1)
    track = replace(track, windows={"SDR": track.windows["SDR"][:1] * math.inf}, mixture=track.mixture * np.nan)
    path = tmp_path / "report.html"
    write_report(str(path), Evaluation("estimates", [track]))
    opened_in(browser, path)
    assert texts(browser, "#summary-table thead th") == ["target", "SDR", "mixture", "gain"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".plot .main-svg:first-child")) == 3
    assert texts(browser, ".badge") == []


def test_remote_files_and_none_half_written(evaluation):
    tf.io.gfile.makedirs("ram://reports")
    write_report("ram://reports/report.html", replace(evaluation, excerpts=()))
    assert tf.io.gfile.listdir("ram://reports") == ["report.html"]
    with tf.io.gfile.GFile("ram://reports/report.html") as file:
        text = file.read()
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("plotly.js v") == 1


def test_no_tracks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tracks"):
        write_report(str(tmp_path / "report.html"), Evaluation("estimates", []))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [3.0, 0.001])
def test_spectrograms(seconds):
    """A tone is where its frequency is, and twenty decibels of eighty below another it is darker by a quarter."""
    time = np.arange(round(seconds * RATE)) / RATE
    loud = np.stack([np.sin(2 * np.pi * 1000 * time)] * 2, axis=1)
    pictures = [
        tf.io.decode_jpeg(picture).numpy().astype(int)
        for picture in spectrograms.pictures([loud, loud * 0.1, loud * 0], RATE)
    ]
    assert {picture.shape[0] for picture in pictures} == {spectrograms._ROWS}
    assert pictures[2].max() < 20
    assert pictures[0].sum() > pictures[1].sum() > pictures[2].sum()
    if seconds > 1:
        brightness = pictures[0].sum(axis=2).mean(axis=1)
        row = 1 - np.argmax(brightness) / (len(brightness) - 1)
        assert row == pytest.approx(spectrograms.height(1000.0), abs=0.02)
        assert brightness[: len(brightness) // 4].mean() < brightness.max() / 4
