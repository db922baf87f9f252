"""What a person sees of a round in Prefect's UI, in a real browser.

`SELU_SCREENSHOTS=FOLDER` keeps a picture of every page, to look at.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dummy_world import small_settings
from tests.ui.served import Served, serving
from tests.ui.small_round import HOSTILE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine: apt install chromium")

ROUND = "selu thor seed 0 round 1"
expect = playwright.expect
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def served(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`selu serve` after the same round was run twice against it."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, small_settings(folder / "data", small_model), "serve") as up:
        up.run_rounds(2)
        yield up


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # As root, which a container's tests are, Chromium has no sandbox of its own.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that may ask our server alone; whatever else it asks for fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    context.set_default_timeout(60_000)
    strangers = []

    def allow_own(route: Any) -> None:
        if route.request.url.startswith((f"{served.address}/", "data:", "blob:")):
            route.continue_()
        else:
            strangers.append(route.request.url)
            route.abort()

    context.route("**/*", allow_own)
    opened = context.new_page()
    yield opened
    folder = os.environ.get("SELU_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name.removeprefix("test_"))
        for number, one in enumerate(context.pages):
            one.screenshot(path=Path(folder) / f"{name}-{number}.png")
    fooled = [one.evaluate("window.fooled") for one in context.pages]
    context.close()
    assert not strangers
    assert not any(fooled)


def _runs(served: Served) -> list[dict[str, Any]]:
    """The runs of the round, the oldest first."""
    wanted = {"flow_runs": {"name": {"any_": [ROUND]}}, "sort": "START_TIME_ASC"}
    found: list[dict[str, Any]] = served.api("/flow_runs/filter", wanted)
    return found


def _artifact(served: Served, key: str) -> dict[str, Any]:
    (found,) = served.api("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    return dict(found)


def _open_artifact(page: Any, served: Served, key: str, ui: str = "") -> None:
    page.goto(f"{served.address}{ui}/artifacts/artifact/{_artifact(served, key)['latest_id']}")


def _open_run(page: Any, served: Served, run: dict[str, Any], tab: str) -> None:
    page.goto(f"{served.address}/runs/flow-run/{run['id']}")
    page.get_by_role("tab", name=tab, exact=True).or_(page.get_by_text(tab, exact=True)).first.click()


def test_the_list_of_runs_says_what_was_run(page: Any, served: Served) -> None:
    page.goto(f"{served.address}/runs")
    for name in (ROUND, "selu thor seed 0, 1 rounds", f"evaluation of {ROUND}"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    for tag in ("method: selu", "world: thor", "seed: 0", "round: 1"):
        expect(page.get_by_text(tag, exact=True).first).to_be_visible()


@pytest.mark.parametrize(("number", "state"), [(0, "Completed"), (1, "Cached")])
def test_a_run_reads_like_the_method(page: Any, served: Served, number: int, state: str) -> None:
    _open_run(page, served, _runs(served)[number], "Task Runs")
    search = page.get_by_placeholder("Search by run name")
    for asked, names in (
        ("rollout", ("rollout 1/3", "rollout 2/3", "rollout 3/3")),
        ("critic", ("critic finetuning, round 1", "critic dataset", "rejudging: guard of the critic")),
    ):
        search.fill(asked)
        for name in names:
            expect(page.locator(".state-list-item").filter(has_text=name).first).to_contain_text(state)


def test_the_log_has_our_own_lines_and_no_noise(page: Any, served: Served) -> None:
    run = _runs(served)[0]
    wanted = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    logs = served.api("/logs/filter", wanted)
    ours = [line["message"] for line in logs if line["name"].startswith("selu")]
    assert [text.partition(":")[0] for text in ours] == [
        "rollout", "frames", "self asking", "hindsight", "critic dataset", "critic finetuning", "rejudging",
        "actor finetuning", "evaluation",
    ]  # fmt: skip
    assert {line["level"] for line in logs} == {20}, "nothing went wrong, and nobody debugs"
    _open_run(page, served, run, "Logs")
    # The page keeps only those lines in its document that are in view.
    line = page.get_by_text(ours[0])
    for _ in range(20):
        if line.count():
            break
        page.mouse.move(700, 1000)
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(200)
    expect(line.first).to_be_visible()


def test_there_is_one_bar_a_stage_and_it_moves(page: Any, served: Served) -> None:
    stages = {
        "tasks", "rollout", "frames", "self-asking", "hindsight", "critic-dataset", "critic-finetuning", "rejudging",
        "actor-finetuning", "evaluation",
    }  # fmt: skip
    assert set(served.seen) == stages
    assert sum(len(values) > 1 for values in served.seen.values()) >= 1, served.seen
    assert all(max(values) == 100 for values in served.seen.values())
    _open_artifact(page, served, "rollout")
    expect(page.get_by_text("100%").first).to_be_visible()


def test_the_artifacts_are_few_and_named(page: Any, served: Served) -> None:
    page.goto(f"{served.address}/artifacts")
    expect(page.get_by_text("16 Artifacts")).to_be_visible()
    for key in ("summary", "metrics", "film-strips", "report", "dataset-version-critic", "dataset-version-actor"):
        expect(page.get_by_text(key, exact=True).first).to_be_visible()
        expect(page.get_by_text("selu thor seed 0, round 1").first).to_be_visible()


@pytest.mark.parametrize("ui", ["", "/v2"])
def test_the_summary_is_a_table(page: Any, served: Served, ui: str) -> None:
    if ui:
        # The second UI asks a telemetry host; it is not the one that we show.
        page.context.route(re.compile(r"amplitude\.com"), lambda route: route.abort())
    _open_artifact(page, served, "summary", ui)
    row = page.locator("tr").filter(has_text="critic, direct verdict, probe A")
    # All trajectories of one label are judged alike here, so that there is no interval to give.
    expect(row).to_have_text(re.compile(r"probe A\s*50\.0\s*100\.0\s*\+50\.0\s*8\s*$"))
    expect(page.locator("tr").filter(has_text="9. evaluation")).to_be_visible()
    expect(page.get_by_text("The new critic is promoted")).to_be_visible()


def test_all_figures_are_a_table(page: Any, served: Served) -> None:
    _open_artifact(page, served, "metrics")
    expect(page.locator("tr").first).to_have_text(
        re.compile(r"subject\s*phase\s*probe\s*method\s*metric\s*value\s*95 %\s*n")
    )
    expect(page.locator("tr").nth(1)).to_have_text(re.compile(r"success rate.*\d to \d", re.DOTALL))


@pytest.mark.parametrize("ui", ["", "/v2"])
def test_film_strips_show_as_pictures_and_what_models_wrote_as_text(page: Any, served: Served, ui: str) -> None:
    if ui:
        page.context.route(re.compile(r"amplitude\.com"), lambda route: route.abort())
    _open_artifact(page, served, "film-strips", ui)
    strips = page.locator("img[alt^='film strip']")
    expect(strips.first).to_be_visible()
    page.wait_for_function("[...document.querySelectorAll(\"img[alt^='film strip']\")].every(strip => strip.complete)")
    widths = strips.evaluate_all("strips => strips.map(strip => strip.naturalWidth)")
    assert 2 <= len(widths) <= 8
    assert all(width > 200 for width in widths)
    expect(page.get_by_text("The truth, for the reader only").first).to_be_visible()
    # Word for word, and neither tag nor picture nor link.
    expect(page.get_by_text(HOSTILE).first).to_be_attached()
    assert page.locator("img[src*='evil'], script:text('fooled'), a[href^='javascript']").count() == 0


def test_the_report_is_one_click_away_and_runs_nothing(page: Any, served: Served) -> None:
    _open_artifact(page, served, "report")
    with page.context.expect_page() as opened:
        page.get_by_text("Open the report").click()
    report = opened.value
    report.wait_for_load_state()
    assert report.title() == f"SELU: {ROUND.replace(' round', ', round')}"
    assert "[y](javascript:window.fooled=1)" in report.inner_text("body")
    assert report.locator("script, a[href^='javascript'], img:not([src^='data:'])").count() == 0
    widths = report.locator("article.film img").evaluate_all("found => found.map(one => one.naturalWidth)")
    assert len(widths) > 4


def test_a_dataset_version_is_one_click_away(page: Any, served: Served) -> None:
    _open_artifact(page, served, "dataset-version-critic")
    with page.context.expect_page() as opened:
        page.get_by_text("Open the critic's dataset version").click()
    shown = opened.value
    expect(shown.get_by_text("Labels were made by the critic model itself")).to_be_visible()
    with shown.expect_download() as kept:
        shown.get_by_role("link", name="data/critic-train.parquet").click()
    assert Path(kept.value.path()).read_bytes()[:4] == b"PAR1"


def test_a_run_is_started_from_a_form_made_of_the_settings(page: Any, served: Served) -> None:
    until = time.monotonic() + 120
    while not (found := served.api("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})):
        assert time.monotonic() < until, served.log.read_text(errors="replace")
        time.sleep(0.5)
    page.goto(f"{served.address}/deployments/deployment/{found[0]['id']}/run")
    seed = page.locator(".p-label").filter(has=page.get_by_text("Seed (Optional)", exact=True)).last
    expect(seed).to_contain_text("the one seed that all randomness comes from")
    expect(page.get_by_text("the actor's; 0 is greedy").first).to_be_attached()
    seed.locator("input").fill("7")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**tab=Runs*")
    runs = served.api("/flow_runs/filter", {"deployments": {"id": {"any_": [found[0]["id"]]}}})
    served.api(f"/flow_runs/{runs[0]['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    assert len(runs) == 1
    given = runs[0]["parameters"]["settings"]
    assert given["seed"] == 7
    assert given["tasks"]["episodes"] == 12, "the rest is what `selu serve` was given"


def test_other_pages_of_a_browser_may_not_read_along(page: Any, served: Served) -> None:
    page.context.route("http://other.invalid/**", lambda route: route.fulfill(body="<title>other</title>"))
    page.goto("http://other.invalid/")
    said = page.evaluate(f"fetch('{served.address}/api/health').then(() => 'read', () => 'refused')")
    assert said == "refused"


def test_nobody_but_this_machine_can_reach_the_server(served: Served) -> None:
    processes = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
    heard = {
        (one.laddr.ip, one.laddr.port)
        for process in processes
        for one in process.net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    }
    assert ("127.0.0.1", int(served.address.rpartition(":")[2])) in heard
    assert {address for address, _ in heard} == {"127.0.0.1"}
