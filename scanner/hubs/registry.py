"""The known sources: how each is opened by its spec, what it supports, and how its hub is reached.

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
class Hub:
    """How a hub on the network is reached. Its public hosts must also be in `addresses.PUBLIC_HOSTS`."""

    name: str
    endpoint: str  # where no environment variable names another
    endpoint_variable: str  # names another endpoint; the workers on all nodes get it
    probe: str  # a path that answers JSON; `scanner doctor` requests it
    token_variable: str  # the environment variable that holds the user's token
    without_token: str  # what happens without a token, and what to set; for people


@dataclass(frozen=True, slots=True)
class SourceType:
    """One kind of source. Its spec is `scheme`, or `scheme:PLACE` where it takes a place."""

    scheme: str
    usage: str  # the spec as a user writes it
    description: str  # what it lists, for people
    takes_place: bool
    query_options: frozenset[str]  # keys of QUERY_OPTIONS that its listing supports
    open: Callable[[str, str | None, bool], Source]  # (place, base, allow_pickle) -> the source
    hub: Hub | None = None  # None for a source that is on this machine
    nightly: bool = False  # whether `scanner nightly` crawls it where no source is named


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
        hub=Hub(
            name="HuggingFace",
            endpoint="https://huggingface.co",
            endpoint_variable="HF_ENDPOINT",
            probe="/api/models?limit=1",
            token_variable="HF_TOKEN",
            without_token="gated repositories on HuggingFace are skipped; set it to a read token",
        ),
        nightly=True,
    ),
    SourceType(
        scheme="civitai",
        usage="civitai",
        description="Civitai, or the site that CIVITAI_ENDPOINT names",
        takes_place=False,
        query_options=frozenset({"since", "filters"}),
        open=_open_civitai,
        hub=Hub(
            name="Civitai",
            endpoint="https://civitai.com",
            endpoint_variable="CIVITAI_ENDPOINT",
            probe="/api/v1/models?limit=1",
            token_variable="CIVITAI_TOKEN",
            without_token="many downloads on Civitai ask for a login; set it to an API key",
        ),
        nightly=True,
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
HUBS = tuple(known.hub for known in SOURCE_TYPES if known.hub is not None)
NIGHTLY = tuple(known.scheme for known in SOURCE_TYPES if known.nightly)


def supporting(option: str) -> tuple[str, ...]:
    """The schemes of the sources whose listing supports a query option, a key of `QUERY_OPTIONS`."""
    return tuple(known.scheme for known in SOURCE_TYPES if option in known.query_options)


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
            others = ", ".join(supporting(name))
            raise ConfigError(f"{option} is not supported by --source {spec}. It works with: {others}.")
    if base_model is not None and not is_repo(base_model):
        raise ConfigError(f"--base-model {base_model} is not OWNER/NAME of a repository on a hub.")
