"""Open a page in headless Chromium, as wide as a telephone or a desk's screen, and ask a script what it sees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
FRAMES = """<!DOCTYPE html><title>waiting</title><script>
const found = {};
onmessage = event => {
  found[event.data.width] = event.data;
  if (Object.keys(found).length === document.querySelectorAll("iframe").length) document.title = JSON.stringify(found);
};
</script>"""
"""No browser window is as narrow as a telephone; a frame can be."""


def look(page: str, script: str, widths: Sequence[int], folder: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """What `script` finds in the page at each width, and the messages of the console.

    Args:
        page: HTML.
        script: JavaScript that ends with `return {...}`; `width` is added to what it returns.
        widths: of the page, in pixels.
        folder: for the page and what the browser keeps.
    """
    assert BROWSER is not None
    told = f"<script>parent.postMessage({{width: innerWidth, ...(() => {{{script}}})()}}, '*');</script>"
    (folder / "page.html").write_text(page.replace("</body>", told + "</body>"))
    frame = '<iframe src="page.html" style="border:0;width:{}px;height:900px"></iframe>'
    (folder / "frames.html").write_text(FRAMES + "".join(map(frame.format, widths)))
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'user'}", "--virtual-time-budget=5000", "--dump-dom",
               (folder / "frames.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr[-2000:]
    found = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return {int(width): one for width, one in found.items()}, re.findall(r"CONSOLE.*", done.stderr)
