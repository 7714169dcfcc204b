"""Reads configuration: defaults, a YAML file, ``ZDIST_…`` variables, the command line; the last one wins.

Every value keeps its origin, so that an error names file and line and ``zdist config show`` tells who set what.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from zdist.config.schema import Config
from zdist.errors import ConfigError
from zdist.limits import MAX_DEPTH

__all__ = ["COMMAND_LINE", "KeyPath", "Settings", "dotted", "load"]

KeyPath: TypeAlias = tuple[str | int, ...]
COMMAND_LINE: Final = "command line"
DEFAULT: Final = "default"
PREFIX: Final = "ZDIST_"


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration in force; ``origins`` names the source of each value that is not a default."""

    config: Config
    origins: Mapping[KeyPath, str]

    def origin(self, path: KeyPath) -> str:
        """Where the value at this path, or something in it, was set."""
        return _origin_within(self.origins, path)

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Key path, value and origin of every value, in the schema's order."""
        for path, value in _leaves(self.config, ()):
            yield dotted(path), value, self.origin(path)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the configuration.

    Parameters: ``path`` of a YAML file, or None; ``environ`` defaults to the process environment, where
    ``ZDIST_BROKER__BIND`` sets ``broker.bind`` and ``ZDIST_NODES__0__NTHREADS`` the first node's threads; ``overrides``
    from the command line, by dotted key ("nodes.0.nthreads"), None standing for not given.
    Raises ConfigError for a file that cannot be read, an unknown key or an ill-typed value; the text has one line for
    each problem, with origin, key path, what is allowed and the nearest name.
    """
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    if path is not None:
        values, lines = _read(Path(path))
        origins = {key: f"{os.fspath(path)}:{line}" for key, line in lines.items()}
    for name, text in sorted((os.environ if environ is None else environ).items()):
        key = _variable(name)
        if key is not None and text:
            _set(values, origins, key, _from_text(key, text, name), f"environment {name}")
    for name, value in (overrides or {}).items():
        if value is not None:
            _set(values, origins, _split(name), value, COMMAND_LINE)
    try:
        return Settings(Config.model_validate(values), origins)
    except ValidationError as exc:
        problems = [_explain(error, origins) for error in exc.errors(include_url=False)]
        raise ConfigError("\n".join(problems)) from None


def dotted(path: KeyPath) -> str:
    """A key path as people write it: ``nodes[0].nthreads``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


# --- sources ----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's, whose own errors for values that cannot be, such as a 13th month, are of any kind and have no place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value!r} is no {kind}; if it is a text, put it in quotes", problem_mark=node.start_mark
            ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Values of a YAML file, and the line of each."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the configuration: {reason}") from None
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = {} if node is None else loader.construct_document(node)
        lines = {} if node is None else dict(_lines(node, (), path))
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(exc, 'problem', None) or exc}") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(values, dict):
        allowed = ", ".join(Config.model_fields)
        raise ConfigError(f"{path}: the file holds no mapping at its top; allowed there: {allowed}")
    return values, lines


def _lines(node: yaml.Node, path: KeyPath, file: Path) -> Iterator[tuple[KeyPath, int]]:
    line = node.start_mark.line + 1
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"{file}:{line}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            here = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{file}:{here}: {dotted((*path, key.value))} was set in line {seen[key.value]} already"
                )
            seen[key.value] = here
            yield (*path, key.value), here
            yield from _lines(value, (*path, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _lines(value, (*path, index), file)


def _variable(name: str) -> KeyPath | None:
    """The key path that a variable sets; other ZDIST_ variables, which name no section, are not configuration."""
    if not name.startswith(PREFIX) or "__" not in name:
        return None
    path = _split(name.removeprefix(PREFIX).lower().replace("__", "."))
    return path if path[0] in Config.model_fields else None


def _split(name: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def _from_text(path: KeyPath, text: str, name: str) -> Any:
    """A variable's value: as it stands where a text belongs, else read as YAML (numbers, true, [a, b], {gpu: 1})."""
    if _takes_text(_annotation(path)):
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"environment {name}: {text!r} is not valid YAML") from None


def _set(values: Any, origins: dict[KeyPath, str], path: KeyPath, value: Any, origin: str) -> None:
    """Put a value at a path, making the mappings on the way and at most one more list entry."""
    for depth, part in enumerate(path[:-1]):
        step: Any = [] if isinstance(path[depth + 1], int) else {}
        child = _child(values, part, step, path[: depth + 1], origin)
        values = child
    _child(values, path[-1], value, path, origin, replace=True)
    for known in [key for key in origins if key[: len(path)] == path]:
        del origins[known]
    _mark(origins, path, value, origin)


def _mark(origins: dict[KeyPath, str], path: KeyPath, value: Any, origin: str) -> None:
    origins[path] = origin
    if isinstance(value, dict):
        for key, entry in value.items():
            _mark(origins, (*path, key), entry, origin)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _mark(origins, (*path, index), entry, origin)


def _child(holder: Any, part: str | int, new: Any, path: KeyPath, origin: str, replace: bool = False) -> Any:
    if isinstance(part, int) and isinstance(holder, list):
        if part > len(holder):
            raise ConfigError(
                f"{origin}: {dotted(path)}: the list has {len(holder)} entries; the next is {len(holder)}"
            )
        if part == len(holder):
            holder.append(new)
        elif replace or holder[part] is None:
            holder[part] = new
    elif isinstance(part, str) and isinstance(holder, dict):
        if replace or holder.get(part) is None:
            holder[part] = new
    else:
        raise ConfigError(f"{origin}: {dotted(path)}: {dotted(path[:-1]) or 'the top'} has no such entry")
    return holder[part]


# --- the schema, seen from a key path -----------------------------------------------------------------


def _annotation(path: KeyPath) -> Any:
    """The type that the schema has at a path, or None."""
    found: Any = Config
    for part in path:
        options = list(_flatten(found))
        model = next((t for t in options if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if model is not None:
            field = model.model_fields.get(str(part))
            if field is None:
                return None
            found = field.annotation
            continue
        sequence = next((t for t in options if get_origin(t) is tuple), None)
        if sequence is None or not isinstance(part, int):
            return None
        found = get_args(sequence)[0]
    return found


def _flatten(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _flatten(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _flatten(part)
    else:
        yield annotation


def _takes_text(annotation: Any) -> bool:
    return any(part is str for part in _flatten(annotation))


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*path, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, value


# --- errors -----------------------------------------------------------------------------------------


def _origin_within(origins: Mapping[KeyPath, str], path: KeyPath) -> str:
    if path in origins:
        return origins[path]
    return next((origin for key, origin in origins.items() if key[: len(path)] == path), DEFAULT)


def _origin_around(origins: Mapping[KeyPath, str], path: KeyPath) -> str:
    """Where to look for the cause of an error at a path: there, within it, or in what it stands in."""
    found = _origin_within(origins, path)
    return _origin_around(origins, path[:-1]) if found == DEFAULT and path else found


def _explain(error: Any, origins: Mapping[KeyPath, str]) -> str:
    """One line for one problem: origin, key path, what is wrong, what is allowed."""
    path: KeyPath = tuple(error["loc"])
    head = f"{_origin_around(origins, path)}: {dotted(path)}"
    parent = next(
        (t for t in _flatten(_annotation(path[:-1])) if isinstance(t, type) and issubclass(t, BaseModel)), None
    )
    if error["type"] == "extra_forbidden" and parent is not None:
        near = difflib.get_close_matches(str(path[-1]), parent.model_fields, 1)
        hint = f'; did you mean "{near[0]}"?' if near else "."
        return f"{head}: unknown key{hint} Allowed here: {', '.join(parent.model_fields)}"
    text = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    text = text.replace("a valid tuple", "a list")
    if error["type"] in ("model_type", "dict_type"):
        text = "should be a mapping"
    about = ""
    if parent is not None and path[-1] in parent.model_fields:
        about = parent.model_fields[str(path[-1])].description or ""
    return f"{head}: {text}, not {error['input']!r}" + (f" ({about})" if about else "")
