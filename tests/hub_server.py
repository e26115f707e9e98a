"""A small Hub on this machine: creates repositories, takes files as the Hub does, keeps them in a
dictionary.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_aTokenThatNobodyMaySee"


class Hub(ThreadingHTTPServer):
    """`repositories`: {name: {"private": bool, "files": {path: bytes}}}."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.blobs = {}
        self.refuse = None  # a status that every request with a token gets

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status=200, content=None):
        body = json.dumps({} if content is None else content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self):
        if self.server.refuse:
            self.answer(self.server.refuse, {"error": f"no, {self.headers['Authorization']}"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"})
        else:
            return False
        return True

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        if not self.refused():
            name = self.path.removeprefix("/api/models/").partition("?")[0]
            known = self.server.repositories[name]
            self.answer(200, {"id": name, "private": known["private"], "sha": "0" * 40})

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.read()
        self.answer()

    def do_POST(self):
        body = self.read()
        if self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif not self.refused():
            self.post(body)

    def post(self, body):
        hub, path = self.server, self.path
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            if name in hub.repositories:
                self.answer(
                    409, {"error": "You already created it", "url": f"{hub.address}/{name}"}
                )
            else:
                hidden = given.get("private") or given.get("visibility") == "private"
                hub.repositories[name] = {"private": bool(hidden), "files": {}}
                self.answer(200, {"url": f"{hub.address}/{name}", "name": name})
        elif "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **entry,
                    "authenticated": True,
                    "actions": {"upload": {"href": f"{hub.address}/blobs/{entry['oid']}"}},
                }
                for entry in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self.answer(404)

    def commit(self, name, body):
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value, files = entry["value"], self.server.repositories[name]["files"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        address = f"{self.server.address}/{name}/commit/{'0' * 40}"
        self.answer(200, {"success": True, "commitUrl": address, "commitOid": "0" * 40})


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
