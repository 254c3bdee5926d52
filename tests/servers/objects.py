"""A real S3 server on loopback: moto's, in a process of its own, with one bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


class Objects:
    """A running server, as a context manager."""

    bucket = "finextract"

    def __enter__(self) -> Objects:
        command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", "0"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "Running on http" in line:
                self.url = line.split("Running on ")[1].split()[0]
                break
        self._drain()
        while self._process.poll() is None:
            try:
                put = urllib.request.Request(f"{self.url}/{self.bucket}", method="PUT")
                urllib.request.urlopen(put).close()
                return self
            except urllib.error.URLError:
                time.sleep(0.1)
        raise RuntimeError("the S3 server has ended")

    def _drain(self) -> None:
        """Its log goes nowhere, so that it never waits for a reader."""
        import threading

        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # type: ignore[union-attr]

    def __exit__(self, *exception: object) -> None:
        self._process.kill()  # it keeps nothing
        self._process.wait()

    def stop(self) -> None:
        """From now on it accepts connections, and answers none."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It answers again, first what was asked meanwhile."""
        self._process.send_signal(signal.SIGCONT)

    def environment(self) -> dict[str, str]:
        """What makes a client use it."""
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1", "no_proxy": "127.0.0.1" + os.environ.get("no_proxy", ""),
        }  # fmt: skip
