"""A small Civitai on loopback: the listing by cursor, versions, versions by hash, and downloads.

DownloadCache are answered as the site answers them, with a redirect to a signed address; it leads to a second
server on a port of its own, which refuses requests that bring a login along, as object stores do. Answers
have the shapes of `civitai_models_list_docs2026.json` and of the older sample.

    with Civitai([model(1, "cat", lora_bytes(1))]) as site:
        httpx2.get(f"{site.url}/api/v1/models")

    python tests/servers/civitai.py --items 5000 --misbehave 0.2 --port 0 --port-file /tmp/port
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import signal
import struct
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers.hub import Responding, Server
from servers.misbehaviour import ALL, Misbehaving, Seeded
from servers.trouble import lora_shapes, small_tensors

Json = dict[str, Any]
FIRST_PUBLISHED = datetime(2026, 1, 1, tzinfo=UTC)
SORTS = ("Highest Rated", "Most Downloaded", "Newest", "Oldest")
MAX_PAGE = 100


@cache
def _lora_data(width: int, context: int, rank: int) -> tuple[Json, bytes]:
    header: Json = {}
    data = b""
    for name, (dtype, shape, content) in small_tensors(lora_shapes(width, context, rank)).items():
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
        data += content
    return header, data


def lora_bytes(number: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """A whole safetensors file of a tiny LoRA, one of its own for each number. Made in microseconds."""
    header, data = _lora_data(8, 16, 1)
    stated = {"__metadata__": {"number": str(number), **(metadata or {})}}
    encoded = json.dumps(stated | header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def file_entry(file_id: int, name: str, content: bytes, **changes: Any) -> Json:
    """A file as a version's entry has it. `content` is what a download returns."""
    digest = hashlib.sha256(content).hexdigest().upper()
    return {
        "id": file_id,
        "name": name,
        "type": "Model",
        "sizeKB": len(content) / 1024,
        "metadata": {"format": "SafeTensor", "size": None, "fp": None},
        "pickleScanResult": "Success",
        "virusScanResult": "Success",
        "hashes": {"AutoV2": digest[:10], "SHA256": digest},
        "primary": True,
        "content": content,
    } | changes


def model(model_id: int, name: Any, content: bytes = b"", **changes: Any) -> Json:
    """A listed model of one version with one file. `changes` go to the model, `version` to its version.

    `detail` is what only the version's own entry states; `files` are the version's, each with its `content`.
    """
    version_id = model_id * 10
    published = FIRST_PUBLISHED + timedelta(minutes=model_id)
    safe = re.sub(r"\W+", "_", str(name), flags=re.ASCII)
    version = {
        "id": version_id,
        "name": "v1.0",
        "baseModel": "SD 1.5",
        "baseModelType": "Standard",
        "publishedAt": published.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "availability": "Public",
        "trainedWords": [f"sks{model_id}"],
        "stats": {"downloadCount": 5, "thumbsUpCount": None},
        "files": changes.pop("files", None)
        or [file_entry(version_id + 1, f"{safe}_v10.safetensors", content or lora_bytes(model_id))],
        "images": [],
        "detail": changes.pop("detail", {}),
    } | changes.pop("version", {})
    return {
        "id": model_id,
        "name": name,
        "description": f"<p>A LoRA of {name}.</p>",
        "type": "LORA",
        "nsfw": False,
        "nsfwLevel": 1,
        "availability": "Public",
        "allowNoCredit": True,
        "allowCommercialUse": "{Image,RentCivit}",
        "allowDerivatives": True,
        "poi": False,
        "mode": None,
        "stats": {"downloadCount": None},
        "creator": {"username": f"maker{model_id % 50}", "image": None},
        "tags": ["style"],
        "modelVersions": [version],
    } | changes


def generated(count: int) -> list[Json]:
    """That many models, with the fields as they drift on the real site, and with what rules entries out."""
    base = "stable-diffusion-v1-5"
    stated = {"ss_base_model_version": "sd_v1", "ss_sd_model_name": f"{base}/{base}"}
    items = []
    for n in range(1, count + 1):
        changes: Json = {}
        if n % 3 == 0:
            changes["allowCommercialUse"] = ["Image"]
        if n % 5 == 0:
            changes["creator"] = None
        if n % 7 == 0:
            changes["version"] = {"publishedAt": f"2025-{n % 12 + 1:02}-05T13:31:16.745"}
        if n % 11 == 0:
            changes["mode"] = "Archived"
            changes["version"] = {"files": []}
        if n % 13 == 0:
            changes["files"] = [file_entry(n * 10 + 1, "old.ckpt", b"", metadata={"format": "PickleTensor"})]
        if n % 17 == 0:
            changes["version"] = {"availability": "EarlyAccess"}
        items.append(model(n, f"thing {n}", lora_bytes(n, stated), **changes))
    return items


def from_folder(folder: Path) -> list[Json]:
    """A model for each safetensors file below a folder, in the order of their names."""
    paths = sorted(folder.rglob("*.safetensors"))
    return [model(n, path.stem, path.read_bytes()) for n, path in enumerate(paths, 1)]


class Civitai:
    """A running site with its store, as a context manager.

    `requests` keeps (server, method, path, headers) of every request, the server being "site" or "store".
    `answers` overrules the download of a version: (status, JSON). `token` is what a version in `private` asks
    for. Cursors lose `loses` models, or repeat `repeats`, at every `every`-th page; `loops` gives one cursor
    for ever.
    """

    def __init__(
        self,
        items: Iterable[Json] = (),
        *,
        port: int = 0,
        answers: Mapping[int, tuple[int, Json]] | None = None,
        token: str | None = None,
        private: Sequence[int] = (),
        states_total: bool = False,
        loses: int = 0,
        repeats: int = 0,
        every: int = 2,
        loops: bool = False,
        store_elsewhere: bool = True,
        handler: type[SiteHandler] | None = None,
        store_handler: type[StoreHandler] | None = None,
    ) -> None:
        self.items = sorted(items, key=lambda i: i["id"] if isinstance(i["id"], int) else 0, reverse=True)
        self.answers = dict(answers or {})
        self.token, self.private, self.states_total = token, set(private), states_total
        self.loses, self.repeats, self.every, self.loops = loses, repeats, every, loops
        self.requests: list[tuple[str, str, str, dict[str, str]]] = []
        self.versions: dict[int, tuple[Json, Json]] = {}
        self.contents: dict[str, bytes] = {}
        self.hashes: dict[str, int] = {}
        self._listed: dict[int, Json] = {}
        for item in self.items:
            self._add(item)
        site = type("BoundSite", (handler or SiteHandler,), {"site": self, "where": "site"})
        self._servers = [Server(("127.0.0.1", port), site)]
        if store_elsewhere:
            store = type("BoundStore", (store_handler or StoreHandler,), {"site": self, "where": "store"})
            self._servers.append(Server(("127.0.0.1", 0), store))
        self.port = int(self._servers[0].server_address[1])
        self.url, self.store_url = (f"http://127.0.0.1:{self._servers[n].server_address[1]}" for n in (0, -1))

    def _add(self, item: Json) -> None:
        for version in item.get("modelVersions") or ():
            if not isinstance(version, dict) or not isinstance(version.get("id"), int):
                continue
            self.versions[version["id"]] = (item, version)
            for file in version.get("files") or ():
                if isinstance(file, dict) and "content" in file:
                    self.contents[f"{version['id']}/{file['id']}"] = file["content"]
                    for digest in (file.get("hashes") or {}).values():
                        self.hashes[str(digest).lower()] = version["id"]
        self._listed[id(item)] = _without(item, ("content", "detail"))

    def __enter__(self) -> Civitai:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def page(self, query: Mapping[str, list[str]]) -> Json:
        """One page of the listing, and where the next one is."""
        kinds, tags = query.get("types", []), query.get("tag", [])
        nsfw = query.get("nsfw") == ["true"]
        found = [
            i
            for i in self.items
            if (not kinds or i.get("type") in kinds)
            and (not tags or tags[0] in (i.get("tags") or ()))
            and (nsfw or not i.get("nsfw"))
        ]
        limit, cursor = int(query.get("limit", ["100"])[0]), query.get("cursor", [""])[0]
        if not 1 <= limit <= MAX_PAGE or query.get("sort", ["Newest"])[0] not in SORTS:
            raise NotServed(400, {"error": {"name": "ZodError", "issues": [{"path": ["limit"]}]}})
        start = int(cursor.split("|")[0]) if cursor else 0
        page = found[start : start + limit]
        metadata: Json = {"totalItems": len(found)} if self.states_total else {}
        following = start + limit
        if following < len(found) or self.loops:
            if following // limit % self.every == 0:
                following = max(start + 1, following + self.loses - self.repeats)
            following = limit if self.loops else following
            metadata["nextCursor"] = f"{following}|932023"
            metadata["nextPage"] = f"https://elsewhere.invalid/api/v1/models?cursor={following}"
        return {"items": [self._listed[id(i)] for i in page], "metadata": metadata}

    def detail(self, version_id: int) -> Json:
        """A version's own page."""
        if version_id not in self.versions:
            raise NotServed(404, {"error": f"No model version with id {version_id}"})
        item, version = self.versions[version_id]
        more = {
            "modelId": item["id"],
            "status": "Published",
            "uploadType": "Created",
            "usageControl": "Download",
            "trainingDetails": None,
            "model": {k: item.get(k) for k in ("name", "type", "nsfw", "poi", "mode")},
        }
        return _without(version, ("content", "detail")) | more | version.get("detail", {})


class NotServed(Exception):
    """An answer other than 200, with its JSON."""

    def __init__(self, status: int, value: Json) -> None:
        super().__init__(str(value))
        self.status, self.value = status, value


class _Handler(Responding):
    site: Civitai
    where: str
    ROUTES: tuple[tuple[str, str], ...] = ()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query, keep_blank_values=True)
        try:
            for pattern, name in self.ROUTES:
                if match := re.fullmatch(pattern, url.path):
                    getattr(self, name)(*match.groups())
                    return
            raise NotServed(404, {"error": "Not found"})
        except NotServed as error:
            self.send_json(error.value, error.status)

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that has read enough hangs up
            super().handle_one_request()

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.site.requests.append((self.where, self.command, self.path, dict(self.headers.items())))
        return parsed

    def store(self, key: str) -> None:
        """A stored file, whole or the one range that was asked for."""
        if "Authorization" in self.headers and len(self.site._servers) > 1:
            self.send_bytes(
                400, b"<Error>Only one auth mechanism allowed</Error>", {"Content-Type": "text/xml"}
            )
            return
        content = self.site.contents[key]
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.send_bytes(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            self.send_bytes(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send_bytes(206, content[first : last + 1], headers)


class StoreHandler(_Handler):
    """The store that signed addresses lead to."""

    ROUTES = ((r"/store/(\d+/\d+)", "store"),)


class SiteHandler(_Handler):
    """One connection to the site. The routes are those of civitai.com that a crawl uses."""

    ROUTES = (
        (r"/api/v1/models", "models"),
        (r"/api/v1/model-versions/by-hash/([0-9A-Za-z]+)", "by_hash"),
        (r"/api/v1/model-versions/(\d+)", "version"),
        (r"/api/download/models/(\d+)", "download"),
        (r"/login", "login"),
        *StoreHandler.ROUTES,
    )

    def models(self) -> None:
        self.send_json(self.site.page(self.query))

    def version(self, version_id: str) -> None:
        self.send_json(self.site.detail(int(version_id)))

    def by_hash(self, digest: str) -> None:
        if digest.lower() not in self.site.hashes:
            raise NotServed(404, {"error": "Model not found"})
        self.send_json(self.site.detail(self.site.hashes[digest.lower()]))

    def login(self) -> None:
        self.send_bytes(200, b"<html>Log in</html>", {"Content-Type": "text/html"})

    def download(self, version_id: str) -> None:
        number = int(version_id)
        if number in self.site.answers:
            status, value = self.site.answers[number]
            if status == 307:
                self.send_bytes(307, b"", {"Location": value["location"]})
                return
            raise NotServed(status, value)
        if number not in self.site.versions:
            raise NotServed(404, {"error": "Model not found"})
        if number in self.site.private and self.headers.get("Authorization") != f"Bearer {self.site.token}":
            words = "The creator of this asset requires you to be logged in to download it"
            raise NotServed(401, {"error": "Unauthorized", "message": words})
        item, version = self.site.versions[number]
        if item.get("mode") == "Archived":
            raise NotServed(410, {"error": "Model archived"})
        files = [f for f in version["files"] if self._asked_for(f)]
        files.sort(key=lambda f: not f.get("primary"))
        if not files:
            raise NotServed(404, {"error": "Model file not found"})
        place = f"{self.site.store_url}/store/{number}/{files[0]['id']}?X-Amz-Signature=secret"
        self.send_bytes(307, b"", {"Location": place})

    def _asked_for(self, file: Json) -> bool:
        stated = {"type": file["type"], "fileId": str(file["id"])} | (file.get("metadata") or {})
        return all(stated.get(k) == v[0] for k, v in self.query.items() if k in stated)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


class TroubledSite(Misbehaving, SiteHandler):
    """A site that misbehaves; `plan` is set by who uses it."""


class TroubledStore(Misbehaving, StoreHandler):
    """A store that misbehaves; `plan` is set by who uses it."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve generated models as Civitai does.")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="serve the safetensors below it instead")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, help="write the port here once the site listens")
    parser.add_argument("--misbehave", type=float, default=0.0, help="share of requests that meet a fault")
    parser.add_argument("--faults", default=",".join(f for f in ALL if f != "wrong"), help="of these")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    items = from_folder(arguments.folder) if arguments.folder else generated(arguments.items)
    TroubledSite.plan = Seeded(arguments.faults.split(","), arguments.misbehave, arguments.seed)
    loses = 3 if arguments.misbehave else 0
    # A crawl trusts the address that its person names alone, so the store is at the same.
    site = Civitai(
        items,
        port=arguments.port,
        states_total=True,
        loses=loses,
        handler=TroubledSite,
        store_elsewhere=False,
    )
    with site:
        print(f"serving {len(items)} models at {site.url}", flush=True)
        if arguments.port_file:
            hidden = arguments.port_file.with_name(f".{arguments.port_file.name}.new")
            hidden.write_text(str(site.port))
            hidden.replace(arguments.port_file)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
