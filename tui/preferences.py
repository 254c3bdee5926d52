"""What the desk keeps of a user between two runs: the theme, in a file of the configuration folder."""

from __future__ import annotations

import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import tomli_w

NAME = "desk.toml"


def default_path() -> Path:
    """The file that the desk reads and writes, beside the user's scanner.toml."""
    return platformdirs.user_config_path("finextract") / NAME


@dataclass(frozen=True, slots=True)
class Preferences:
    """The file. One that is missing, damaged or that cannot be written is no error: the defaults apply."""

    path: Path

    def theme(self) -> str | None:
        """Returns the name of the theme that was chosen last; None if none was."""
        theme = self._content().get("theme")
        return theme if isinstance(theme, str) else None

    def keep_theme(self, name: str) -> None:
        """Keeps the name of a theme."""
        content = self._content()
        if content.get("theme") == name:
            return
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(tomli_w.dumps({**content, "theme": name}), "utf-8")
            part.replace(self.path)

    def _content(self) -> dict[str, object]:
        try:
            return tomllib.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
