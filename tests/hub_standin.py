"""A model hub on loopback for the tests: each repository is a local folder with one commit."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1" * 40


def entry(root: Path, path: Path) -> dict:
    """A file or folder as the hub lists it."""
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "oid": digest[:40], "size": path.stat().st_size}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, Path]  # "models/NAME" or "datasets/NAME" -> folder

    def log_message(self, *_) -> None:
        pass

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": len(body),
            "X-Repo-Commit": COMMIT,
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value) -> None:
        self.send(json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, code: str) -> None:
        self.send(b"{}", 404, X_Error_Code=code)

    def locate(self, path: str):
        """(folder, rest of the path) of the repository that the path starts with; (None, "")
        without one.
        """
        for name, root in self.repositories.items():
            if path == name or path.startswith(name + "/"):
                return root, path[len(name) + 1 :]
        return None, ""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/"):
            root, rest = self.locate(path[4:])
            return (
                self.api(root, rest, parse_qs(urlsplit(self.path).query))
                if root
                else self.refuse("RepoNotFound")
            )
        root, rest = self.locate(path if path.startswith("datasets/") else f"models/{path}")
        return self.file(root, rest) if root else self.refuse("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        root, rest = self.locate(unquote(urlsplit(self.path).path).strip("/")[4:])
        if not root or not rest.startswith("paths-info"):
            return self.refuse("EntryNotFound")
        paths = (
            json.loads(body)["paths"]
            if body.startswith(b"{")
            else parse_qs(body.decode()).get("paths", [])
        )
        return self.send_json(
            [entry(root, root / path) for path in paths if (root / path).exists()]
        )

    def api(self, root: Path, rest: str, query: dict) -> None:
        if rest == "" or rest.startswith("revision/"):
            files = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()]
            return self.send_json(
                {
                    "id": "x",
                    "sha": COMMIT,
                    "private": False,
                    "gated": False,
                    "tags": [],
                    "cardData": {},
                    "lastModified": "2024-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": name} for name in files],
                }
            )
        folder = root.joinpath(*rest.split("/")[2:])
        if rest.startswith("tree/") and folder.is_dir():
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            paths = folder.rglob("*") if recursive else folder.iterdir()
            return self.send_json([entry(root, path) for path in sorted(paths)])
        return self.refuse("EntryNotFound")

    def file(self, root: Path, rest: str) -> None:
        path = root.joinpath(*rest.split("/")[2:])
        if not rest.startswith("resolve/") or not path.is_file():
            return self.refuse("EntryNotFound")
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept_Ranges": "bytes"}
        if (span := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = span[6:].partition("-")
            first, last = int(first or 0), int(last or len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(content[first : last + 1], 206, **headers)
        return self.send(content, **headers)


def serve(repositories: dict[str, Path]) -> ThreadingHTTPServer:
    """A running hub; `server_port` says where, `shutdown()` ends it."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Hub", (Handler,), {"repositories": repositories})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
