"""The version of this program as a node has it, so that all nodes of a crawl have the same one.

A release number is not enough: between two releases the code changes and the number does not.
"""

from __future__ import annotations

from collections.abc import Callable


def version_reader() -> Callable[[object], str]:
    """A function that returns the version of this program where it runs, with a hash of its files.

    It is defined here inside a function, so that Ray sends its code: a node has no need to have this module.
    """

    def read_version(_: object) -> str:
        import hashlib
        from importlib.metadata import version
        from importlib.util import find_spec
        from pathlib import Path

        digest = hashlib.sha256()
        for package in ("finextract", "scanner"):
            spec = find_spec(package)
            for place in (spec.submodule_search_locations or ()) if spec else ():
                files = [*Path(place).rglob("*.py"), *Path(place).rglob("published/**/*.json")]
                for file in sorted(files):
                    digest.update(f"{package}/{file.relative_to(place)}\0".encode() + file.read_bytes())
        return f"{version('finextract-scanner')} (source {digest.hexdigest()[:12]})"

    return read_version
