"""A server with v3 as the hosted API has it: no events, no Idempotency-Keys, no parameters beyond its documents.

It answers one poll with `processing`, then with the image. `bodies` are the submissions, `keys` the keys that it saw.
`SlowServer` is one that is stopped amid a submission.
"""

import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

ID = "6488c2754f6f4dfea924382fa14d11bd"
DOCUMENTED = {"prompt", "size", "seed", "output_format", "enable_base64_output", "enable_sync_mode"}


class SlowServer:
    """A server that has received a submission and has not answered it yet; the second one it answers at once.

    `submitted` has the Idempotency-Keys of the submissions, `cancelled` the tasks that were cancelled.
    """

    def __init__(self):
        self.received, self.release = threading.Event(), threading.Event()
        self.submitted, self.cancelled, self.keys, self.url = [], [], set(), ""

    def answer(self, method, path, body, headers):
        """The response to a request, as a status, a content type and bytes."""
        if method == "POST" and path.endswith("/cancel"):
            self.cancelled.append(path.split("/")[-2])
        elif method == "POST":
            self.submitted.append(headers["idempotency-key"])
            self.received.set()
            assert len(self.submitted) > 1 or self.release.wait(60)
        elif not path.endswith("/result"):
            return 404, "application/json", b'{"code": 404, "message": "not found"}'
        status = "cancelled" if self.cancelled else "created"
        data = {"id": ID, "model": "wavespeed-ai/hidream-i1-dev", "outputs": [], "status": status}
        return 200, "application/json", json.dumps({"code": 200, "message": "success", "data": data}).encode()


class Hosted:
    """The state of the server."""

    def __init__(self):
        self.bodies, self.keys, self.polls, self.url = [], set(), 0, ""

    def task(self):
        """The task as v3 describes it."""
        done = self.polls > 1
        outputs = [f"{self.url}/1.png"] if done else []
        return {"id": ID, "model": "wavespeed-ai/hidream-i1-dev", "outputs": outputs, "status": self.status(done)}

    def status(self, done):
        """The state of the task."""
        return "completed" if done else "processing"

    def answer(self, method, path, body, headers):
        """The response to a request, as a status, a content type and bytes."""
        if method == "POST":
            self.bodies.append(json.loads(body))
            assert self.bodies[-1].keys() <= DOCUMENTED
        elif path.endswith("/result"):
            self.polls += 1
        elif path.endswith(".png"):
            file = io.BytesIO()
            Image.new("RGB", (64, 32), (255, 128, 0)).save(file, "PNG")
            return 200, "image/png", file.getvalue()
        else:
            return 404, "application/json", b'{"code": 404, "message": "not found"}'
        said = {"code": 200, "message": "success", "data": self.task()}
        return 200, "application/json", json.dumps(said).encode()


@contextmanager
def served(state):
    """Run a server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            state.keys.add(self.headers.get("authorization"))
            status, content_type, content = state.answer(self.command, self.path, body, self.headers)
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()
