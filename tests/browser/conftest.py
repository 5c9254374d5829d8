"""A headless Chromium, and reports that it opens."""

import os
import shutil
from contextlib import contextmanager

import pytest

from milvus_pipeline.evaluation.report import write_report
from support import sample_evaluations

SPECIMENS = ("one_system", "sweep", "hostile", "bare")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def unavailable(reason):
    """Skip the tests, or fail them in CI, where they must not be skipped unnoticed."""
    message = f"no browser: {reason}; on Debian: apt-get install --no-install-recommends chromium"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


# Not for the session: while the browser is open, no other test of this process can run an event loop.
@pytest.fixture(scope="module")
def browser():
    """The browser of this machine, with a temporary profile."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        unavailable(f"none of {', '.join(NAMES)} is on the PATH")
    playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        except playwright_api.Error as error:
            unavailable(f"{program} does not start: {error.message.splitlines()[0]}")
        try:
            yield chromium
        finally:
            chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The path of each sample evaluation's report, by name."""
    folder = tmp_path_factory.mktemp("reports")
    paths = {name: folder / f"{name}.html" for name in SPECIMENS}
    for name, path in paths.items():
        write_report(getattr(sample_evaluations, name)(), path)
    return paths


class Seen:
    """The requests and complaints of a page."""

    def __init__(self, page):
        self.requests, self.complaints = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))


@pytest.fixture
def opened(browser, reports):
    """Opens the report of a sample evaluation for a ``with``; ``page.seen`` records what the page did."""

    @contextmanager
    def open_report(name, *, width=1440, scheme="light", scripts=True, unfold=False):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        page = context.new_page()
        page.seen = Seen(page)
        page.goto(reports[name].as_uri())
        if unfold:
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        yield page
        context.close()

    return open_report
