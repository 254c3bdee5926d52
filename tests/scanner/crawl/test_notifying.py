"""Who is told of new flags: a real command, and a real server on loopback that may fail first."""

from __future__ import annotations

import hashlib
import hmac
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import scanner
from filled_store import Crawl

from scanner.crawl.delivery import Notify
from scanner.crawl.notifying import Notifier, Told
from scanner.crawl.progress import Progress
from scanner.doctor import State, check_notify
from scanner.errors import ConfigError
from scanner.records import Checkpoint, Scan, Verdict, now
from scanner.store.orphans import collect
from scanner.store.store import Store

ANNA = "anna/style"
KEEP = "import sys; open({out!r}, 'a').write(sys.stdin.read())"


@dataclass
class Hook:
    """A server that keeps what it is sent; `answers` are the statuses of the first requests."""

    url: str
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was sent, whether it was accepted or not."""
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def hook(*answers: int) -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.requests.append((dict(self.headers), body))
            self.send_response(made.answers.pop(0) if made.answers else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Hook(f"http://127.0.0.1:{server.server_port}/secret-path", list(answers))
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def crawl(tmp_path: Path) -> Crawl:
    (tmp_path / "mine").mkdir()
    return Crawl(Store(tmp_path / "store", create=True), tmp_path / "mine")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("scanner.crawl.notifying.FIRST_PAUSE_S", 0.05)
    monkeypatch.delenv("FINEXTRACT_WEBHOOK_SECRET", raising=False)


def checkpoint_of(crawl: Crawl, scan: Scan) -> Checkpoint:
    (found,) = crawl.store.select(Checkpoint, "WHERE checkpoint_id = ?", [scan.checkpoint_id])
    return found


def tell(
    crawl: Crawl, notify: Notify | None, *scans: Scan, wait_s: float = 20.0, said: list[str] | None = None
) -> Told:  # fmt: skip
    """A crawl that came to these verdicts."""
    assert notify is not None
    messages = [] if said is None else said
    with Notifier(notify, Store(crawl.store.root), f"run-{time.monotonic_ns()}", messages.append) as notifier:
        for scan in scans:
            notifier.outcome(checkpoint_of(crawl, scan), scan, Progress())
        return notifier.end(wait_s)


def python(code: str, **settings: Any) -> Notify | None:
    return Notify.given(shlex.join([sys.executable, "-c", code]), None, **settings)


def test_a_server_that_fails_first_gets_each_flag_once_and_nothing_that_it_should_not_know(
    crawl: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINEXTRACT_WEBHOOK_SECRET", "sesame")
    scan = crawl.flagged(
        ANNA, (0.81, 0.4), 0.004, {"source": "folder:/home/anna/models", "url": "file:///home/anna/a"},
        margins=(0.3, 0.2),
    )  # fmt: skip
    plain = crawl.scan("kim/plain", Verdict.NOTHING_FOUND)
    with hook(500, 503) as server:
        notify = Notify.given(None, server.url)
        assert tell(crawl, notify, plain, scan).delivered == 1
        assert len(server.requests) == 3, "two answers were failures"
        assert tell(crawl, notify, scan).delivered == 0, "another crawl meets the same flag"
        assert len(server.requests) == 3
    headers, body = server.requests[-1]
    message = server.messages[-1]
    assert headers["X-Finextract-Id"] == message["id"]
    expected = hmac.new(b"sesame", body, hashlib.sha256).hexdigest()
    assert headers["X-Finextract-Signature"] == f"sha256={expected}"
    assert len({m["id"] for m in server.messages}) == 1, "a repetition has the same id"
    assert (message["event"], message["repo"], message["scan_id"]) == ("flag", ANNA, scan.scan_id)
    assert message["grounds"] == message["new_grounds"] == ["trained_on", "gives_back"]
    both, trained = message["found"]
    match, (_, other) = crawl.matches[ANNA][0], crawl.memberships[ANNA]
    assert (both["subject_id"], both["similarity"], both["reference"]) == (match.match_id, 0.81, "1-0.png")
    assert (both["grounds"], both["q_value"]) == (["trained_on", "gives_back"], 0.004)
    assert (trained["subject_id"], trained["grounds"]) == (other.membership_id, ["trained_on"])
    assert message["source"] == "folder"
    assert b"/home/anna" not in body
    assert str(crawl.folder).encode() not in body


def test_a_command_reads_the_flag_from_its_stdin_and_its_output_is_kept(crawl: Crawl, tmp_path: Path) -> None:
    scan = crawl.flagged(ANNA, (0.9,), 0.01)
    out = str(tmp_path / "told.jsonl")
    notify = python(KEEP.format(out=out) + "; print('thank you')")
    assert tell(crawl, notify, scan) == Told(delivered=1)
    (line,) = Path(out).read_text().splitlines()
    id_ = json.loads(line)["id"]
    assert json.loads(line)["repo"] == ANNA
    assert crawl.store.storage.read(f"logs/notify/{id_}.log") == b"thank you\n"
    collect(crawl.store)
    assert tell(crawl, notify, scan).delivered == 0, "the removal of orphans keeps the marks"


def test_a_command_that_hangs_holds_up_nobody_and_the_next_crawl_delivers(
    crawl: Crawl, tmp_path: Path
) -> None:
    scan = crawl.flagged(ANNA, (0.9,), 0.01)
    said: list[str] = []
    began = time.monotonic()
    told = tell(crawl, python("import time; time.sleep(60)", timeout_s=0.3), scan, wait_s=30, said=said)
    assert time.monotonic() - began < 20
    assert (told.delivered, told.waiting) == (0, 1)
    assert "did not end within 0.3 s" in told.problem
    assert said[-1].startswith("1 message about flags could not be delivered yet")
    assert sys.executable in said[-1]
    assert "time.sleep" not in said[-1], "the arguments may be secret"
    out = str(tmp_path / "told.jsonl")
    assert tell(crawl, python(KEEP.format(out=out))).delivered == 1, "without an event of its own"
    assert json.loads(Path(out).read_text())["repo"] == ANNA


def test_a_crawl_goes_on_while_a_command_hangs(crawl: Crawl) -> None:
    scan = crawl.flagged(ANNA, (0.9,), 0.01)
    listed = checkpoint_of(crawl, scan)
    notify = python("import time; time.sleep(600)", timeout_s=600.0)
    assert notify is not None
    with Notifier(notify, Store(crawl.store.root), "run", [].append) as notifier:
        began = time.monotonic()
        for _ in range(20_000):  # more than the queue takes
            notifier.outcome(listed, scan, Progress())
        assert notifier.end(0.2).delivered == 0
        assert time.monotonic() - began < 20


def test_a_flag_that_a_killed_crawl_recorded_is_told_by_the_next_one(crawl: Crawl) -> None:
    """Its worker had written the row, and no event reached the driver."""
    crawl.flagged("old/flag", (0.9,), 0.01)  # before anybody was to be told
    with hook() as server:
        notify = Notify.given(None, server.url)
        tell(crawl, notify)
        scan = crawl.flagged(ANNA, (0.9,), 0.01, finished_at=now())
        assert tell(crawl, notify).delivered == 1
        assert [m["scan_id"] for m in server.messages] == [scan.scan_id]


def test_a_message_that_the_store_cannot_keep_is_told_of_and_made_by_the_next_crawl(crawl: Crawl) -> None:
    folder, away = crawl.store.root / "notify", crawl.store.root / "away"
    said: list[str] = []
    with hook() as server:
        notify = Notify.given(None, server.url)
        tell(crawl, notify)
        scan = crawl.flagged(ANNA, (0.9,), 0.01, finished_at=now())
        folder.rename(away)
        folder.write_text("no folder")
        told = tell(crawl, notify, scan, said=said)
        assert (told.delivered, told.waiting, server.messages) == (0, 1, [])
        assert "could not be delivered yet: " in said[-1]
        folder.unlink()
        away.rename(folder)
        assert tell(crawl, notify).delivered == 1


def test_a_checkpoint_is_told_again_on_new_grounds_alone(crawl: Crawl) -> None:
    first = crawl.flagged(ANNA, (), 0.01, margins=(0.3,))
    with hook() as server:
        notify = Notify.given(None, server.url)
        tell(crawl, notify, first)
        again = replace(first, scan_id="2" * 32, config_id="rematched", finished_at=now())
        crawl.store.append([again])
        tell(crawl, notify, again)
        assert len(server.messages) == 1, "another configuration, the same grounds"
        further = replace(again, scan_id="3" * 32, config_id="third", finished_at=now(),
                          grounds="trained_on+gives_back", best_similarity=0.9, q_value=0.01)  # fmt: skip
        crawl.store.append([further])
        tell(crawl, notify, further)
    assert [m["new_grounds"] for m in server.messages] == [["trained_on"], ["gives_back"]]
    assert server.messages[1]["grounds"] == ["trained_on", "gives_back"]


def test_of_two_crawls_that_meet_a_flag_at_once_one_tells_of_it(crawl: Crawl) -> None:
    scan = crawl.flagged(ANNA, (0.9,), 0.01)
    listed = checkpoint_of(crawl, scan)
    with hook() as server:
        notify = Notify.given(None, server.url)
        assert notify is not None
        notifiers = [Notifier(notify, Store(crawl.store.root), f"run-{n}", [].append) for n in range(3)]
        for one in notifiers:
            one.__enter__().outcome(listed, scan, Progress())
        told = [one.end(20) for one in notifiers]
    assert sum(one.delivered for one in told) == len(server.messages) == 1


def test_a_server_that_refuses_one_message_gets_the_others(crawl: Crawl) -> None:
    scans = [crawl.flagged(f"a/{n}", (0.9,), 0.01) for n in range(3)]
    said: list[str] = []
    with hook(400) as server:
        told = tell(crawl, Notify.given(None, server.url), *scans, said=said)
        assert told.delivered == 3
        assert "secret-path" not in "".join(said)
    assert {m["repo"] for m in server.messages} == {"a/0", "a/1", "a/2"}


def test_nothing_is_followed_to_another_address(crawl: Crawl) -> None:
    scan = crawl.flagged(ANNA, (0.9,), 0.01)
    with hook(302) as server:
        monkey = Notify.given(None, server.url)
        assert monkey is not None
        said: list[str] = []
        with Notifier(monkey, Store(crawl.store.root), "run", said.append) as notifier:
            notifier.outcome(checkpoint_of(crawl, scan), scan, Progress())
            while not said:
                time.sleep(0.01)
            assert "answered 302 (a redirect, which is not followed" in said[0]


def test_doctor_says_who_is_told_and_what_waits(crawl: Crawl) -> None:
    def found(setting: Callable[[], Notify | None]) -> tuple[State, str]:
        check = check_notify(crawl.store.uri, setting)
        return check.state, check.finding

    assert found(lambda: None) == (State.GOOD, "not set: new flags are recorded, and nobody is told")
    webhook = Notify.given(None, "https://hooks.example/secret-path")
    state, finding = found(lambda: webhook)
    assert state is State.GOOD
    assert finding.startswith("the webhook at https://hooks.example/..., not signed")
    tell(crawl, python("raise SystemExit(7)"), crawl.flagged(ANNA, (0.9,), 0.01))
    assert found(lambda: webhook) == (State.POOR, f"{finding}; 1 message not delivered")
    assert found(lambda: Notify.given("no-such-program", None))[0] is State.BAD


@pytest.mark.parametrize(
    ("command", "webhook", "why"),
    [
        ("python 'x", None, "Check its quotes"),
        ("no-such-program-here --x", None, "no-such-program-here, which is no program on this machine"),
        (None, "http://hooks.example/x", "Use https"),
        (None, "ftp://hooks.example/x", "is not an address"),
        (None, "https://", "is not an address"),
        (sys.executable, "https://hooks.example/x", "not both"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_begins(
    command: str | None, webhook: str | None, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        Notify.given(command, webhook)


def test_the_settings_file_says_who_is_told_and_a_test_message_is_sent(
    crawl: Crawl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scanner.toml"
    monkeypatch.setenv("FINEXTRACT_CONFIG", str(file))
    assert scanner("notify", "--test").returncode == 2
    with hook() as server:
        file.write_text(f'[notify]\nwebhook = "{server.url}"\ntimeout = 5\n')
        done = scanner("notify", "--test")
        assert (done.returncode, done.stdout) == (0, "")
        assert "The test message was delivered to the webhook at http://127.0.0.1:" in done.stderr
        assert [m["event"] for m in server.messages] == ["test"]
        shown = scanner("config", "notify").stdout
        assert "127.0.0.1" in shown
        assert "secret-path" not in shown
        server.answers = [404]
        assert scanner("notify", "--test").returncode == 3
        crawl.store.storage.create("notify/since.json", b'{"since": "2026-11-01T00:00:00+00:00"}')
        crawl.flagged(ANNA, (0.9,), 0.01)
        done = scanner("notify", "--store", crawl.store.root)
        assert done.returncode == 0
        assert done.stderr.startswith("1 message delivered to the webhook at ")
        assert server.messages[-1]["repo"] == ANNA
    done = scanner("notify", "--test", "--command", f"{sys.executable} -c 'print(input()[:9])'")
    assert done.returncode == 0
    assert done.stderr.startswith('{"event":')
