"""Chromium without a window, and the loopback server of the folder that it is shown."""

import contextlib
import functools
import http.server
import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
# What a test asks runs in a page that has the export's page in a frame, and sends its answer here.
ASKING = """<!DOCTYPE html><iframe src="index.html" width="1200" height="900"></iframe>
<script type="module">
const send = (answer) => fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
const frame = document.querySelector("iframe");
try {
  while (!frame.contentWindow.rin) await new Promise((resolve) => setTimeout(resolve, 20));
  const page = frame.contentWindow;
  await page.rin.ready;
  send({ answer: await (async () => { ASKED })() });
} catch (error) {
  send({ error: String(error.stack ?? error) });
}
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file server, with one page that asks and one address that takes the answer."""

    def __init__(self, *arguments, asked: str, answers: queue.Queue, paths: list, **keywords):
        self.asked, self.answers, self.paths = asked, answers, paths
        super().__init__(*arguments, **keywords)

    def do_GET(self):
        self.paths.append(self.path)
        if self.path != "/asking.html":
            super().do_GET()
            return
        content = ASKING.replace("ASKED", self.asked).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path, asked: str = "") -> Iterator[tuple[str, queue.Queue, list[str]]]:
    """(address, answers, paths that were asked for) of a file server of a folder."""
    answers: queue.Queue = queue.Queue()
    paths: list[str] = []
    handler = functools.partial(
        Handler, directory=str(folder), asked=asked, answers=answers, paths=paths
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers, paths
        server.shutdown()


def ask(folder: Path, javascript: str, timeout: float = 60.0) -> tuple[Any, list[str]]:
    """What JavaScript returns with an export's page as `page`, and the paths that were fetched."""
    with tempfile.TemporaryDirectory() as own, served(folder, javascript) as served_at:
        address, answers, paths = served_at
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={own}", f"{address}/asking.html"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
            try:
                answer = answers.get(timeout=timeout)
            finally:
                browser.terminate()
    assert "error" not in answer, answer["error"]
    return answer["answer"], paths
