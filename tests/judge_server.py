"""A server that answers as an OpenAI-compatible one does."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def server(*replies, refuses=lambda body: False):
    """Answer one request after the other with (status, headers, content of the message or body);
    repeat the last reply. A request that `refuses` names gets a 400. Yield the URL and the list of
    requests.
    """
    requests, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append((self.path, dict(self.headers), body))
                status, headers, content = replies[min(len(requests), len(replies)) - 1]
            if refuses(body):
                status, headers, content = 400, {}, "content filter"
            if callable(content):
                content = content(body)
            if status == 200 and isinstance(content, str):
                content = {"choices": [{"message": {"content": content}}]}
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", requests
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
