"""The known sources: how each is opened by its spec, and which query options it supports.

A new source is one module that implements `scanner.hubs.base.Source`, and one entry in `SOURCE_TYPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scanner.errors import ConfigError
from scanner.hubs.base import Source
from scanner.hubs.base_models import is_repo

# Fields of a Query that narrow a listing -> the option of `scanner crawl` that sets each.
QUERY_OPTIONS = {"since": "--since", "filters": "--filter", "base_model": "--base-model"}


@dataclass(frozen=True, slots=True)
class SourceType:
    """One kind of source. Its spec is `scheme`, or `scheme:PLACE` where it takes a place."""

    scheme: str
    usage: str  # the spec as a user writes it
    description: str  # what it lists, for people
    takes_place: bool
    query_options: frozenset[str]  # keys of QUERY_OPTIONS that its listing supports
    open: Callable[[str, str | None, bool], Source]  # (place, base, allow_pickle) -> the source


def _open_huggingface(_place: str, base: str | None, allow_pickle: bool) -> Source:
    from scanner.hubs.huggingface.source import HuggingFaceSource

    return HuggingFaceSource(base=base, allow_pickle=allow_pickle)


def _open_civitai(_place: str, base: str | None, allow_pickle: bool) -> Source:
    from scanner.hubs.civitai.source import CivitaiSource

    return CivitaiSource(base=base, allow_pickle=allow_pickle)


def _open_folder(place: str, base: str | None, allow_pickle: bool) -> Source:
    from scanner.hubs.folder import FolderSource

    return FolderSource(Path(place), base=base, allow_pickle=allow_pickle)


SOURCE_TYPES = (
    SourceType(
        scheme="hf",
        usage="hf",
        description="HuggingFace, or the hub that HF_ENDPOINT names",
        takes_place=False,
        query_options=frozenset({"since", "filters", "base_model"}),
        open=_open_huggingface,
    ),
    SourceType(
        scheme="civitai",
        usage="civitai",
        description="Civitai, or the site that CIVITAI_ENDPOINT names",
        takes_place=False,
        query_options=frozenset({"since", "filters"}),
        open=_open_civitai,
    ),
    SourceType(
        scheme="folder",
        usage="folder:PATH",
        description="a local folder",
        takes_place=True,
        query_options=frozenset({"since"}),
        open=_open_folder,
    ),
)
USAGES = ", ".join(known.usage for known in SOURCE_TYPES)  # for help texts


def source_type(spec: str) -> SourceType:
    """The kind of source that a spec names. Raises ConfigError for an unknown one."""
    scheme, _, place = spec.partition(":")
    for known in SOURCE_TYPES:
        if known.scheme == scheme and known.takes_place == bool(place):
            return known
    usages = ", ".join(f"{known.usage} ({known.description})" for known in SOURCE_TYPES)
    raise ConfigError(f"--source {spec} is not known. Known sources: {usages}.")


def open_source(spec: str, base: str | None = None, *, allow_pickle: bool = False) -> Source:
    """The source that `spec` names. `base` is OWNER/NAME on a hub, or a local diffusers folder or file.

    For a hub `base` is the base of the checkpoints that state none, for "folder:PATH" the base of all.
    Raises ConfigError for a spec or a base that cannot be used, SourceError for a folder that is not there.
    """
    return source_type(spec).open(spec.partition(":")[2], base, allow_pickle)


def check_query_options(spec: str, *, base_model: str | None = None, **given: object) -> None:
    """Raises ConfigError where a query option is given that the source does not support.

    The keywords are those of QUERY_OPTIONS; an empty value counts as not given.
    """
    supported = source_type(spec).query_options
    for name, value in {"base_model": base_model, **given}.items():
        option = QUERY_OPTIONS[name]
        if value and name not in supported:
            others = ", ".join(t.scheme for t in SOURCE_TYPES if name in t.query_options)
            raise ConfigError(f"{option} is not supported by --source {spec}. It works with: {others}.")
    if base_model is not None and not is_repo(base_model):
        raise ConfigError(f"--base-model {base_model} is no OWNER/NAME of a repository on a hub.")
