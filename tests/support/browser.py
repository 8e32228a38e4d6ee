"""Headless Chromium for the slow tests and for `screenshots.py`: dump, measure, photograph."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *(
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-sync",
        "--disable-quic",
    ),
    *("--disable-component-update", "--disable-default-apps", "--disable-extensions"),
    *("--allow-file-access-from-files", "--virtual-time-budget=4000"),
)
DARK = "--blink-settings=preferredColorScheme=0"
NARROWEST = 500  # of a headless window; narrower pages are shown in a frame


def chromium(url: str, *flags: str) -> str:
    """Run Chromium on one page with a profile of its own; return what it prints."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, url],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return done.stdout


def dump(page: Path, *flags: str) -> str:
    """The document after its scripts ran."""
    return chromium(page.as_uri(), "--dump-dom", *flags)


@contextmanager
def recording_proxy():
    """A proxy that answers nothing and remembers what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def refuse(self):
            asked.append(self.path)
            self.send_error(403)

        do_GET = do_POST = do_CONNECT = do_HEAD = refuse

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"--proxy-server=http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


MEASURE = """<!doctype html><body style="margin:0"><iframe src="{url}"
style="border:0;width:{width}px;height:{height}px"></iframe><script>
onload = () => {{
  const d = document.querySelector("iframe").contentDocument, out = {{}};
  out.page = [d.documentElement.scrollWidth, d.documentElement.scrollHeight];
  for (const s of {selectors}) {{
    const e = d.querySelector(s);
    out[s] = e && [e.getBoundingClientRect().left, e.getBoundingClientRect().bottom];
  }}
  document.title = JSON.stringify(out);
}};</script></body>"""


def measure(page: Path, width: int, height: int, selectors: list[str]) -> dict:
    """Size of the page, and left and lower ends of elements, shown `width` pixels wide."""
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        fields = {"url": page.as_uri(), "width": width, "height": height}
        frame.write_text(MEASURE.format(**fields, selectors=json.dumps(selectors)))
        text = dump(frame, f"--window-size={max(width, NARROWEST)},{height}")
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1]))


def photograph(page: Path, png: Path, width: int, height: int, *, dark: bool = False) -> None:
    """A picture of the page's first `height` pixels, shown `width` pixels wide."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        frame.write_text(
            f'<body style="margin:0"><iframe src="{page.as_uri()}" '
            f'style="border:0;width:{width}px;height:{height}px"></iframe>'
        )
        raw = Path(folder) / "raw.png"
        size = f"--window-size={max(width, NARROWEST)},{height}"
        chromium(frame.as_uri(), f"--screenshot={raw}", size, *([DARK] if dark else []))
        with Image.open(raw) as image:
            small = (
                image.convert("RGB")
                .crop((0, 0, width, height))
                .quantize(256, dither=Image.Dither.NONE)
            )
            small.save(png, optimize=True)
