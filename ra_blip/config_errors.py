"""What OmegaConf, PyYAML and the file system say about a wrong recipe, as one line that names key and remedy."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from ra_blip.errors import ConfigError


def refuse_interpolation(value: Any, source: str, key: str = "") -> None:
    """Raise :class:`ConfigError` for a ``${...}``; ``key`` is where in the recipe ``value`` stands.

    OmegaConf would fill ``${oc.env:HOME}`` from the environment; a recipe means the same on every machine.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            refuse_interpolation(part, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for position, part in enumerate(value):
            refuse_interpolation(part, source, f"{key}[{position}]")
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"{source}: interpolation {value!r} is not allowed; write the value{_named(key)}")


@contextlib.contextmanager
def explained(source: str, schema: type[Any]) -> Iterator[None]:
    """Turn what OmegaConf, PyYAML and the file system raise into one :class:`ConfigError` line about ``source``."""
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException
    from yaml import MarkedYAMLError, YAMLError

    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror or error})") from None
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = (error.problem or "not YAML").replace("found duplicate key", "duplicate key")
        raise ConfigError(f"{source}{line}: {problem}") from None
    except GrammarParseError as error:
        raise ConfigError(
            f"{source}: not an allowed value, '${{' begins an interpolation{_named(error.full_key)}"
        ) from None
    except OmegaConfBaseException as error:
        first = _with_nearest(str(error).strip().splitlines()[0], schema)
        raise ConfigError(f"{source}: {first}{_named(error.full_key)}") from None
    except (YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None


def _named(key: str | None) -> str:
    return f" (key {key!r})" if key else ""


def _with_nearest(message: str, schema: type[Any]) -> str:
    """Add to OmegaConf's words on an unknown key, which know its section only: the key may stand in another one."""
    unknown = re.match(r"Key '(.*)' not in '(\w+)'", message)
    if unknown is None:
        return message
    wanted, section = unknown.groups()
    paths = dict(_paths(schema))
    inside = [path.rpartition(".")[2] for path, owner in paths.items() if owner == section]
    leaves = {path.rpartition(".")[2]: path for path in reversed(paths)}  # reversed: the first of a name wins
    if wanted in leaves:
        return f"{unknown[0]}. Did you mean: {leaves[wanted]!r}?"
    if "Did you mean" in message or not inside:
        return message
    if close := difflib.get_close_matches(wanted, inside, n=1) or difflib.get_close_matches(wanted, leaves, n=1):
        return f"{message}. Did you mean: {close[0] if close[0] in inside else leaves[close[0]]!r}?"
    return f"{message}. Keys here: {', '.join(inside)}"


def _paths(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, owning dataclass's name) of every field below ``schema``; ``params[0]`` stands for each rule."""
    for name, hint in get_type_hints(schema).items():
        yield f"{prefix}{name}", schema.__name__
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if isinstance(inner, type):
            yield from _paths(inner, f"{prefix}{name}{'' if inner is hint else '[0]'}.")
