"""`scanner.toml`: a person's own defaults for the options of `scanner`'s verbs.

    store = "/data/finextract"          # for every verb that has such an option

    [crawl]                             # for one verb; dashes and underscores are alike
    source = "hf"
    samples-per-image = 20

The first of these files is read: $FINEXTRACT_CONFIG, ./scanner.toml, scanner.toml in the user's settings
folder. What stands on the command line or in the environment comes before it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import platformdirs

from scanner.errors import ConfigError

NAME = "scanner.toml"
Defaults = dict[str, Any]


def places() -> list[Path]:
    """Where the settings are looked for, in order."""
    named = os.environ.get("FINEXTRACT_CONFIG")
    if named:
        return [Path(named).expanduser()]
    return [Path(NAME), platformdirs.user_config_path("finextract") / NAME]


def find() -> Path | None:
    """The file that is read. Raises ConfigError where $FINEXTRACT_CONFIG names none."""
    found = next((p for p in places() if p.is_file()), None)
    if found is None and os.environ.get("FINEXTRACT_CONFIG"):
        raise ConfigError(f"FINEXTRACT_CONFIG names {places()[0]}, which is no file.")
    return found


def read(path: Path) -> Defaults:
    """The file as it stands. Raises ConfigError for what is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def defaults_of(command: click.Command, path: tuple[str, ...], settings: Mapping[str, Any]) -> Defaults:
    """What the settings say of a verb's options, by parameter name: its own table before the top level."""
    section: Any = settings
    for name in path:
        section = section.get(name) if isinstance(section, dict) else None
    own = {_key(k): v for k, v in section.items()} if isinstance(section, dict) else {}
    top = {_key(k): v for k, v in settings.items() if not isinstance(v, dict)}
    return {str(o.name): (top | own)[key] for key, o in options(command).items() if key in top | own}


def default_map(root: click.Group, settings: Mapping[str, Any], file: Path) -> Defaults:
    """The settings as click takes them. Raises ConfigError, with what was meant, for a name that is none."""
    check(root, settings, file)

    def mapped(command: click.Command, path: tuple[str, ...]) -> Defaults:
        if isinstance(command, click.Group):
            return {name: mapped(sub, (*path, name)) for name, sub in subcommands(command)}
        return defaults_of(command, path, settings)

    return mapped(root, ())


def check(root: click.Group, settings: Mapping[str, Any], file: Path) -> None:
    """Raises ConfigError for a table that is no verb, or a key that is no option."""
    every = {name for _, command in walk(root) for name in options(command)}
    for key, value in settings.items():
        if not isinstance(value, dict) and _key(key) not in every:
            raise _unknown(file, key, every)

    def inside(command: click.Command, table: Mapping[str, Any], where: str) -> None:
        verbs = dict(subcommands(command)) if isinstance(command, click.Group) else {}
        for key, value in table.items():
            if isinstance(value, dict):
                if key not in verbs:
                    raise _unknown(file, f"[{where}{key}]", verbs)
                inside(verbs[key], value, f"{where}{key}.")
            elif where and _key(key) not in options(command):
                raise _unknown(file, f"{key} in [{where.rstrip('.')}]", options(command))

    inside(root, settings, "")


def _unknown(file: Path, key: str, known: Iterable[str]) -> ConfigError:
    names = [name.replace("_", "-") for name in known]
    word = key.strip("[]").partition(" ")[0].rpartition(".")[2].replace("_", "-")
    near = difflib.get_close_matches(word, names, n=1)
    meant = f"Did you mean {near[0]}?" if near else f"It takes: {', '.join(sorted(names))}."
    return ConfigError(f"{file}: {key} is no setting. {meant}")


def _key(name: str) -> str:
    return name.replace("-", "_")


def options(command: click.Command) -> dict[str, click.Option]:
    """A verb's options by the names that they have on the command line, with underscores."""
    return {_key(p.opts[-1].lstrip("-")): p for p in command.params if isinstance(p, click.Option)}


def subcommands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """A group's verbs by name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) is not None:
            yield name, command


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb that is no group, with its words."""
    for name, command in subcommands(group):
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


def effective(root: click.Group, settings: Mapping[str, Any], file: Path | None) -> Iterator[Defaults]:
    """Every option of every verb that has a value: `verb`, `option`, `value`, and where it comes `from`."""
    for path, command in walk(root):
        told = defaults_of(command, path, settings)
        for option in options(command).values():
            value, origin = _value(option, told, file)
            if value is not None and value != ():
                yield {
                    "verb": " ".join(path), "option": option.opts[-1], "value": value, "from": origin,
                }  # fmt: skip


def _value(option: click.Option, told: Defaults, file: Path | None) -> tuple[Any, str]:
    names = [option.envvar] if isinstance(option.envvar, str) else []
    for name in names:
        if os.environ.get(name):
            return os.environ[name], f"${name}"
    if option.name in told:
        return told[str(option.name)], str(file)
    default: Any = option.default
    made: Callable[[], Any] | None = default if callable(default) else None
    value = made() if made else default
    return (None if type(value).__name__ == "Sentinel" else value), "default"
