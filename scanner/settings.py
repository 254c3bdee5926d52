"""`scanner.toml`: the user's defaults for the options of `scanner`'s verbs.

    store = "/data/finextract"          # for every verb that has this option, and for finextract-tui

    [crawl]                             # for one verb; dashes and underscores are equivalent
    source = "hf"
    samples-per-image = 20

The first of these files is read: $FINEXTRACT_CONFIG, ./scanner.toml, scanner.toml in the user's configuration
folder. The command line and the environment take precedence over it.
"""

from __future__ import annotations

import datetime
import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import platformdirs
from click.core import ParameterSource

from scanner.errors import ConfigError

NAME = "scanner.toml"
Defaults = dict[str, Any]


class SharedOption(click.Option):
    """An option of several verbs whose default may stand in the table of one of them, its `section`."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class PrivateOption(click.Option):
    """An option whose value may hold a secret; it is shown as `shown` makes it."""

    def __init__(self, *args: Any, shown: Callable[[str], str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown = shown


def places() -> list[Path]:
    """The files that may hold the settings, in order."""
    named = os.environ.get("FINEXTRACT_CONFIG")
    if named:
        return [Path(named).expanduser()]
    return [Path(NAME), platformdirs.user_config_path("finextract") / NAME]


def find() -> Path | None:
    """The file that is read, if there is one. Raises ConfigError if $FINEXTRACT_CONFIG is not a file."""
    found = next((p for p in places() if p.is_file()), None)
    if found is None and os.environ.get("FINEXTRACT_CONFIG"):
        raise ConfigError(f"FINEXTRACT_CONFIG names {places()[0]}, which is not a file.")
    return found


def read(path: Path) -> Defaults:
    """The content of the file. Raises ConfigError if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def top_level(option: click.Option) -> Any:
    """The value that the file has for an option above all tables; None without one.

    For a program that is no verb of `scanner`. Raises ConfigError for a value that the option does not take.
    """
    file = find()
    values = _values(read(file), ()) if file is not None else {}
    name = str(option.name)
    if file is not None and name in values:
        _check_value(file, name, option, values[name])
    return values.get(name)


def defaults_of(command: click.Command, path: tuple[str, ...], settings: Mapping[str, Any]) -> Defaults:
    """The defaults of a verb's options, by parameter name.

    The verb's own table takes precedence over the table that an option shares, and that over the top level.
    """
    own, top = _values(settings, path), _values(settings, ())
    defaults = {}
    for key, option in options(command).items():
        shared = _values(settings, (option.section,)) if isinstance(option, SharedOption) else {}
        found = [values[key] for values in (own, shared, top) if key in values]
        if found:
            defaults[str(option.name)] = found[0]
    return defaults


def _values(settings: Mapping[str, Any], path: tuple[str, ...]) -> Defaults:
    """The keys of one table, without the tables inside it."""
    section: Any = settings
    for name in path:
        section = section.get(name) if isinstance(section, dict) else None
    if not isinstance(section, Mapping):
        return {}
    return {_key(k): v for k, v in section.items() if not isinstance(v, dict)}


def default_map(root: click.Group, settings: Mapping[str, Any], file: Path) -> Defaults:
    """The settings as a `default_map` of click.

    Raises ConfigError for an unknown name, with a suggestion, and for a value that an option does not take.
    """
    check(root, settings, file)

    def mapped(command: click.Command, path: tuple[str, ...]) -> Defaults:
        if isinstance(command, click.Group):
            return {name: mapped(sub, (*path, name)) for name, sub in subcommands(command)}
        return defaults_of(command, path, settings)

    return mapped(root, ())


def check(root: click.Group, settings: Mapping[str, Any], file: Path) -> None:
    """Raises ConfigError for a table that is not a verb, a key that is not an option, or a wrong value."""
    every = {name: option for _, command in walk(root) for name, option in options(command).items()}
    for key, value in settings.items():
        if not isinstance(value, dict):
            if _key(key) not in every:
                raise _unknown(file, key, every)
            _check_value(file, key, every[_key(key)], value)

    def inside(command: click.Command, table: Mapping[str, Any], where: str) -> None:
        verbs = dict(subcommands(command)) if isinstance(command, click.Group) else {}
        for key, value in table.items():
            if isinstance(value, dict):
                if key not in verbs:
                    raise _unknown(file, f"[{where}{key}]", verbs)
                inside(verbs[key], value, f"{where}{key}.")
            elif where:
                place = f"{key} in [{where.rstrip('.')}]"
                if _key(key) not in options(command):
                    raise _unknown(file, place, options(command))
                _check_value(file, place, options(command)[_key(key)], value)

    inside(root, settings, "")


def _check_value(file: Path, place: str, option: click.Option, value: Any) -> None:
    """Raises ConfigError for a value that has not the option's type, or that the option does not take."""
    kind: type | tuple[type, ...] = str
    if option.multiple:
        kind, expected = list, "a list"
    elif option.is_flag:
        kind, expected = bool, "true or false"
    elif isinstance(option.type, click.types.IntParamType):
        kind, expected = int, "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        kind, expected = (int, float), "a number"
    else:
        numbers = (int,) if option.type.name == "size" else ()
        kind, expected = (str, datetime.date, *numbers), "text in quotes"
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    try:
        if not wrong:
            option.type_cast_value(click.Context(click.Command("check")), value)
            return
        problem = f"takes {expected}, not {value!r}"
    except (click.BadParameter, ConfigError) as error:
        problem = f"cannot be {value!r}: {error}"
    raise ConfigError(f"{file}: {place} {problem}")


def _unknown(file: Path, key: str, known: Iterable[str]) -> ConfigError:
    names = [name.replace("_", "-") for name in known]
    word = key.strip("[]").partition(" ")[0].rpartition(".")[2].replace("_", "-")
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known names: {', '.join(sorted(names))}."
    return ConfigError(f"{file}: {key} is not a setting. {hint}")


def _key(name: str) -> str:
    return name.replace("-", "_")


def options(command: click.Command) -> dict[str, click.Option]:
    """A verb's options by their names on the command line, with underscores."""
    return {_key(p.opts[-1].lstrip("-")): p for p in command.params if isinstance(p, click.Option)}


def subcommands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """The verbs of a group, by name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) is not None:
            yield name, command


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb that is not a group, with its path."""
    for name, command in subcommands(group):
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


def effective(root: click.Context, file: Path | None) -> Iterator[Defaults]:
    """Every option of every verb that has a value: `verb`, `option`, `value`, and where it comes `from`."""
    for path, context in _contexts(root):
        for option in options(context.command).values():
            value, origin = _value(context, option, file)
            if isinstance(option, PrivateOption) and isinstance(value, str):
                value = option.shown(value)
            if value is not None and value != ():
                yield {
                    "verb": " ".join(path), "option": option.opts[-1], "value": value, "from": origin,
                }  # fmt: skip


def _contexts(
    parent: click.Context, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """A context of every verb that is not a group, as if it was called without arguments."""
    assert isinstance(parent.command, click.Group)
    for name, command in subcommands(parent.command):
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        if isinstance(command, click.Group):
            yield from _contexts(context, (*path, name))
        else:
            yield (*path, name), context


def _value(context: click.Context, option: click.Option, file: Path | None) -> tuple[Any, str]:
    """An option's value as it was written, and where it comes from."""
    name = str(option.name)
    match context.get_parameter_source(name):
        case ParameterSource.ENVIRONMENT:
            return context.params[name], f"${option.envvar}"
        case ParameterSource.DEFAULT_MAP:
            return context.lookup_default(name), str(file)
        case _:
            written = isinstance(option.default, str)  # such as "10GB", whose value is a number of bytes
            return option.default if written else context.params.get(name), "default"
