"""A small HuggingFace Hub on loopback that serves folders as model repositories over the real protocol.

The real `huggingface_hub` client works against it: the listing with `Link` paging, model info with blobs, the
tree, paths-info, and `resolve` with HEAD, Range and ETags. Large files are answered as the Hub answers them:
with a redirect to a content address, and the file's SHA256 and size in `X-Linked-*`. It offers no Xet
storage.

    with Hub({"someone/cat": Path("cat")}) as hub:
        HfApi(endpoint=hub.url).model_info("someone/cat")

    python tests/servers/hub.py --zoo tests/zoo --port 0 --port-file /tmp/port     # the zoo, and troublesome
    entries
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import yaml

LFS_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".png", ".jpg", ".jpeg"}
LISTED = (
    "_id",
    "id",
    "modelId",
    "likes",
    "private",
    "downloads",
    "tags",
    "pipeline_tag",
    "library_name",
    "createdAt",
)
SORTS = {"createdAt", "lastModified", "downloads", "likes", "trendingScore"}
FIRST_CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class File:
    """One file of a repository. Large ones are stored by SHA256, with a pointer in git, as on the Hub."""

    path: str  # inside the repository
    source: Path
    size: int  # bytes
    sha256: str
    blob_id: str  # git's SHA1 of the file, or of its pointer
    pointer_size: int | None  # bytes; None for a file that is stored in git itself

    @classmethod
    def read(cls, source: Path, path: str) -> File:
        content = source.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = None
        if source.suffix.lower() in LFS_SUFFIXES:
            lines = (
                "version https://git-lfs.github.com/spec/v1",
                f"oid sha256:{sha256}",
                f"size {len(content)}",
            )
            pointer = "\n".join((*lines, "")).encode()
        stored = content if pointer is None else pointer
        blob_id = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
        return cls(path, source, len(content), sha256, blob_id, None if pointer is None else len(pointer))

    @property
    def etag(self) -> str:
        return self.blob_id if self.pointer_size is None else self.sha256

    def sibling(self, blobs: bool) -> dict[str, Any]:
        if not blobs:
            return {"rfilename": self.path}
        lfs = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {"rfilename": self.path, "blobId": self.blob_id, "size": self.size} | (
            {} if self.pointer_size is None else {"lfs": lfs}
        )

    def tree_entry(self) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {"type": "file", "oid": self.blob_id, "size": self.size, "path": self.path} | (
            {} if self.pointer_size is None else {"lfs": lfs}
        )


class Repository:
    """A folder as a model repository; its commit is derived from its content."""

    def __init__(self, name: str, folder: Path, created: datetime, gated: bool) -> None:
        self.name, self.folder, self.created, self.gated = name, folder, created, gated
        self.modified: datetime | None = None  # if not when it was created

    @cached_property
    def files(self) -> dict[str, File]:
        paths = sorted(p for p in self.folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        names = [p.relative_to(self.folder).as_posix() for p in paths]
        return {name: File.read(path, name) for name, path in zip(names, paths, strict=True)}

    @cached_property
    def sha(self) -> str:
        lines = [f"{f.path}\t{f.sha256}" for f in self.files.values()]
        return hashlib.sha1("\n".join(lines).encode()).hexdigest()

    @cached_property
    def card(self) -> dict[str, Any]:
        readme = self.files.get("README.md")
        text = readme.source.read_text(encoding="utf-8", errors="replace") if readme else ""
        match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        data = yaml.safe_load(match[1]) if match else None
        return data if isinstance(data, dict) else {}

    @cached_property
    def pipeline_class(self) -> str | None:
        index = self.files.get("model_index.json")
        return json.loads(index.source.read_text()).get("_class_name") if index else None

    @cached_property
    def tags(self) -> list[str]:
        """The card's tags and those that the Hub adds."""
        card = self.card
        tags = [str(card.get("library_name") or "diffusers")]
        tags += ["safetensors"] if any(p.endswith(".safetensors") for p in self.files) else []
        tags += [t for t in card.get("tags") or [] if isinstance(t, str)]
        tags += [t for t in [card.get("pipeline_tag")] if t]
        bases = card.get("base_model") or []
        for base in [bases] if isinstance(bases, str) else bases:
            relation = card.get("base_model_relation") or ("adapter" if "lora" in tags else "finetune")
            tags += [f"base_model:{base}", f"base_model:{relation}:{base}"]
        tags += [f"license:{card['license']}"] if card.get("license") else []
        tags += [f"diffusers:{self.pipeline_class}"] if self.pipeline_class else []
        return [*dict.fromkeys(tags), "region:us"]

    def entry(self, blobs: bool = False) -> dict[str, Any]:
        """The repository as the Hub's listing and model info tell it."""
        created = self.created.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return {
            "_id": self.sha[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.split("/")[0],
            "sha": self.sha,
            "createdAt": created,
            "lastModified": (self.modified or self.created).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "private": False,
            "gated": "auto" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "trendingScore": 0,
            "library_name": self.card.get("library_name", "diffusers"),
            "pipeline_tag": self.card.get("pipeline_tag", "text-to-image"),
            "tags": self.tags,
            "cardData": self.card,
            "config": {"diffusers": {"_class_name": self.pipeline_class}} if self.pipeline_class else {},
            "siblings": [f.sibling(blobs) for f in self.files.values()],
            "usedStorage": sum(f.size for f in self.files.values()),
        }


class NotServed(Exception):
    """An answer other than 200, with the Hub's own error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Server(ThreadingHTTPServer):
    """One that says nothing of clients that are gone in the middle of an answer.

    Its connections end with it, so that a client does not stay with a server that has been replaced.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Hub:
    """A running hub, as a context manager. `requests` keeps (method, path, Range header) of every request.

    `handler` may be a Handler that misbehaves.
    """

    def __init__(
        self,
        repos: Mapping[str, Path],
        *,
        port: int = 0,
        page_size: int = 1000,
        gated: Collection[str] = (),
        handler: type[Handler] | None = None,
    ) -> None:
        self.repositories = {
            name: Repository(name, Path(folder), FIRST_CREATED + timedelta(hours=n), name in gated)
            for n, (name, folder) in enumerate(repos.items())
        }
        self.page_size = page_size
        self._found: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        bound = type("BoundHandler", (handler or Handler,), {"hub": self})
        self._server = Server(("127.0.0.1", port), bound)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def push(self, name: str, at: datetime) -> None:
        """A new commit of a repository whose folder has changed."""
        old = self.repositories[name]
        self.repositories[name] = Repository(name, old.folder, old.created, old.gated)
        self.repositories[name].modified = at
        self._found.clear()

    def repository(self, name: str, revision: str) -> Repository:
        repository = self.repositories.get(name)
        if repository is None:
            raise NotServed(404, "RepoNotFound", "Repository not found")
        if revision not in ("main", repository.sha):
            raise NotServed(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    def list_models(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Every entry that the query asks for, before paging; found once for all of its pages."""
        asked = json.dumps({k: v for k, v in query.items() if k not in ("cursor", "limit")}, sort_keys=True)
        if asked not in self._found:
            self._found[asked] = self._find(query)
        return self._found[asked]

    def _find(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = {tag for value in query.get("filter", []) for tag in value.split(",")}
        search = query.get("search", [""])[0].lower()
        author = query.get("author", [""])[0]
        found = [
            r.entry()
            for r in self.repositories.values()
            if wanted <= {*r.tags, "text-to-image"}  # the pipeline tag is a tag to the Hub's filters
            and search in r.name.lower()
            and author in ("", r.name.split("/")[0])
        ]
        sort = query.get("sort", ["trendingScore"])[0]
        if sort not in SORTS:
            raise NotServed(400, "", f"Invalid sort: {sort}")
        found.sort(key=lambda e: e[sort], reverse=True)
        if "full" in query:
            return found
        fields = {*LISTED, *(["cardData"] if "cardData" in query else [])}
        fields = {"_id", "id", *query["expand"]} if "expand" in query else fields
        return [{k: v for k, v in e.items() if k in fields} for e in found]


class Responding(BaseHTTPRequestHandler):
    """How the servers of this folder send a response."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def send_json(self, value: object, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        body = json.dumps(value, default=str).encode()
        self.send_bytes(status, body, {"Content-Type": "application/json", **headers})

    def send_bytes(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Handler(Responding):
    """One connection. The routes are those of huggingface.co that the client uses."""

    hub: Hub
    ROUTES = (
        (r"/api/models", "models"),
        (r"/api/models/([^/]+/[^/]+)", "info"),
        (r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", "info"),
        (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", "tree"),
        (r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", "paths_info"),
        (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        (r"/cdn/([^/]+/[^/]+)/([0-9a-f]{64})", "content"),
    )

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.query = parse_qs(url.query, keep_blank_values=True)
        try:
            for pattern, name in self.ROUTES:
                if match := re.fullmatch(pattern, url.path):
                    getattr(self, name)(*(unquote(g) for g in match.groups() if g is not None))
                    return
            raise NotServed(404, "", "Not found")
        except NotServed as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            self.send_json({"error": str(error)}, error.status, headers | {"X-Error-Message": str(error)})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        self.do_GET()

    def models(self) -> None:
        self.send_page(self.hub.list_models(self.query))

    def info(self, name: str, revision: str = "main") -> None:
        self.send_json(self.hub.repository(name, revision).entry(blobs="blobs" in self.query))

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        files = self.hub.repository(name, revision).files.values()
        prefix = folder.rstrip("/") + "/" if folder else ""
        inside = [f for f in files if f.path.startswith(prefix)]
        if prefix and not inside:
            raise NotServed(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        parts = [f.path.removeprefix(prefix).split("/")[:-1] for f in inside]
        depths = [range(1, len(p) + 1) if recursive else range(1, min(1, len(p)) + 1) for p in parts]
        folders = {prefix + "/".join(p[:n]) for p, depth in zip(parts, depths, strict=True) for n in depth}
        entries = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)
        ]
        entries += [f.tree_entry() for f in inside if recursive or "/" not in f.path.removeprefix(prefix)]
        self.send_page(entries)

    def paths_info(self, name: str, revision: str) -> None:
        files = self.hub.repository(name, revision).files
        self.send_json([files[path].tree_entry() for path in self.form.get("paths", []) if path in files])

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repository(name, revision)
        if repository.gated:
            raise NotServed(403, "GatedRepo", f"Access to model {name} is restricted")
        file = repository.files.get(path)
        if file is None:
            raise NotServed(404, "EntryNotFound", f"{path} does not exist on {revision}")
        headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{file.etag}"'}
        if file.pointer_size is None:
            self.send_content(file, headers)
            return
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        self.send_bytes(
            302, b"", headers | linked | {"Location": f"{self.hub.url}/cdn/{quote(name)}/{file.sha256}"}
        )

    def content(self, name: str, sha256: str) -> None:
        repository = self.hub.repository(name, "main")
        file = next((f for f in repository.files.values() if f.sha256 == sha256), None)
        if file is None:
            raise NotServed(404, "EntryNotFound", "No such content")
        # The client follows a redirect inside one host before it looks at these; the Hub's goes to another.
        self.send_content(file, {"X-Repo-Commit": repository.sha, "ETag": f'"{file.sha256}"'})

    def send_content(self, file: File, headers: dict[str, str]) -> None:
        """A whole file, or the one range that was asked for."""
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        first, last, status = 0, file.size - 1, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked and any(asked.groups()) and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            first = int(asked[1]) if asked[1] else max(0, file.size - int(asked[2]))
            last = min(int(asked[2]), last) if asked[1] and asked[2] else last
            if first > last:
                self.send_bytes(416, b"", {"Content-Range": f"bytes */{file.size}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        with file.source.open("rb") as content:
            content.seek(first)
            self.send_bytes(status, content.read(last - first + 1), headers)

    def send_page(self, entries: list[dict[str, Any]]) -> None:
        """One page of entries, and where the next one is."""
        size = min(int(self.query.get("limit", [str(self.hub.page_size)])[0]), self.hub.page_size)
        cursor = self.query.get("cursor", [""])[0]
        start = int(base64.urlsafe_b64decode(cursor)) if cursor else 0
        headers = {}
        if start + size < len(entries):
            cursor = base64.urlsafe_b64encode(str(start + size).encode()).decode()
            query = urlencode({**self.query, "cursor": [cursor]}, doseq=True)
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        self.send_json(entries[start : start + size], headers=headers)


def zoo_repositories(zoo: Path) -> dict[str, Path]:
    """The zoo's base and checkpoints, by the repository names that zoo.json gives them."""
    listing = json.loads((zoo / "zoo.json").read_text())
    repos = {listing["base_repo"]: zoo / listing["base"]}
    return repos | {c["repo"]: zoo / c["path"] for c in listing["checkpoints"]}


def generated(count: int, into: Path) -> dict[str, Path]:
    """That many repositories as a hub has them: mostly tiny LoRA with a card; by name.

    Of every ten one states no base and one no caption; of every twenty one is a pickle, one holds no
    weights, and one holds a damaged file.
    """
    from servers.civitai import lora_bytes

    repos = {}
    for n in range(count):
        name, folder = f"author{n % 97}/lora-{n:05}", into / f"{n:05}"
        folder.mkdir(parents=True)
        card = {
            "base_model": None if n % 10 == 3 else "lab/base",
            "instance_prompt": None if n % 10 == 7 else f"a photo of sks {n % 13}",
            "tags": ["lora", "text-to-image", *(["diffusers-training"] if n % 2 else [])],
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in card.items() if value is not None]
        (folder / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
        content = lora_bytes(n)
        if n % 20 == 5:
            (folder / "model.ckpt").write_bytes(b"\x80\x02" + content)
        elif n % 20 != 11:
            damaged = content[:-9] if n % 20 == 16 else content
            (folder / "pytorch_lora_weights.safetensors").write_bytes(damaged)
        repos[name] = folder
    return repos


def family_zoos(zoo: Path) -> list[Path]:
    """The folders of the zoos of further families, inside the zoo of Stable Diffusion 1."""
    return sorted(path.parent for path in zoo.glob("*/zoo.json"))


@contextlib.contextmanager
def zoo_hub(zoo: Path, port: int = 0, families: bool = False, without: Collection[str] = ()) -> Iterator[Hub]:
    """A hub, not yet serving, of the zoo and of the troublesome entries, whose folder goes with the block.

    `families`: the zoos of further families too. `without`: repositories that it does not have.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from servers.trouble import troublesome_repositories

    with tempfile.TemporaryDirectory(prefix="hub-") as folder:
        repositories = zoo_repositories(zoo) | troublesome_repositories(zoo, Path(folder))
        for further in family_zoos(zoo) if families else ():
            repositories |= zoo_repositories(further)
        yield Hub({repo: path for repo, path in repositories.items() if repo not in without}, port=port)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serve the zoo and troublesome entries, or generated ones, as a HuggingFace Hub."
    )
    content = parser.add_mutually_exclusive_group(required=True)
    content.add_argument("--zoo", type=Path)
    content.add_argument("--items", type=int, help="serve that many generated repositories")
    parser.add_argument(
        "--misbehave", type=float, default=0.0, help="the share of requests that go wrong first"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, help="write the port here once the hub listens")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from servers.misbehaviour import ALL, Misbehaving, Seeded

    plan = Seeded(ALL, share=arguments.misbehave, seed=arguments.seed)
    handler = type("Troubled", (Misbehaving, Handler), {"plan": plan})
    with contextlib.ExitStack() as held:
        if arguments.zoo:
            hub = held.enter_context(zoo_hub(arguments.zoo, arguments.port))
        else:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="hub-")))
            hub = Hub(generated(arguments.items, folder), port=arguments.port, handler=handler)
        print(f"serving {len(hub.repositories)} repositories at {hub.url}", flush=True)
        if arguments.port_file:
            hidden = arguments.port_file.with_name(f".{arguments.port_file.name}.new")
            hidden.write_text(str(hub.port))
            hidden.replace(arguments.port_file)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the temporary folder goes
        with contextlib.suppress(KeyboardInterrupt):
            hub.serve_forever()


if __name__ == "__main__":
    main()
