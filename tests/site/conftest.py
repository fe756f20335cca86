"""A local server of the built site and a Chromium that may talk to nothing else."""

import functools
import http.server
import mimetypes
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
NODE = Path(__file__).parent / "node_modules"
MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3/"
CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

sys.path.insert(0, str(ROOT / "book" / "_tools"))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line of log for each."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def address():
    """Address of a server of `_build/html`."""
    if not (SITE / "index.html").exists():
        pytest.fail("there is no built site: run `make book` first")
    handler = functools.partial(QuietHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium; $CHROMIUM names another."""
    names = [os.environ.get("CHROMIUM"), *map(shutil.which, CANDIDATES), MAC]
    program = next((name for name in names if name and Path(name).exists()), None)
    if program is None:
        pytest.fail("no Chromium found: install one (apt install chromium) or set CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A loaded page with what its console said and what it asked of the world."""

    def __init__(self, browser, address, name, *, width=1280, height=900, scheme="light"):
        self.messages: list[str] = []
        self.foreign: list[str] = []
        self.address = address
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.route("**/*", self._route)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.messages.append(f"page error: {error}"))
        self.page.goto(f"{address}/{name}.html", wait_until="load")
        self.page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.messages.append(f"{message.type}: {message.text}")

    def _route(self, route):
        url = route.request.url
        if url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        elif url.startswith(MATHJAX):
            file = NODE / "mathjax" / url.removeprefix(MATHJAX).split("?")[0]
            kind = mimetypes.guess_type(file.name)[0] or "text/javascript"
            route.fulfill(body=file.read_bytes(), content_type=kind)
        else:
            self.foreign.append(url)
            route.abort()

    def close(self):
        self.context.close()


@pytest.fixture
def visit(browser, address):
    """Open a page: `visit("book/welcome", width=390, scheme="dark")`."""
    visits = []

    def open_page(name, **options):
        visits.append(Visit(browser, address, name, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.close()
