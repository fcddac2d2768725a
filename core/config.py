"""Typed, frozen, strict configuration: YAML with a `base:` file, `key=value` overrides, one clear
line for every mistake."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
)

from core.errors import UserError, nearest, reason
from core.files import read_text


class Strict(BaseModel):
    """A section of a config: unknown keys and wrong types are errors, and nothing can be changed
    afterwards. A string under a key is its comment, which `--help` shows.

    LATER: keys that were added later. They are left out where they are at their defaults, so that
    configs from before them keep their hash and their runs go on.
    """

    LATER: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @model_serializer(mode="wrap")
    def _without_later(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        dull = {key for key in self.LATER if getattr(self, key) == fields[key].default}
        return {key: value for key, value in whole(self).items() if key not in dull}


T = TypeVar("T", bound=Strict)


class _Refused(yaml.YAMLError):
    """Valid YAML that no config means; `line` counts from 1."""

    def __init__(self, node: yaml.Node | yaml.Event, words: str):
        super().__init__(words)
        self.line = node.start_mark.line + 1


JSON_TAGS = [
    f"tag:yaml.org,2002:{name}" for name in ["null", "bool", "int", "float", "str", "seq", "map"]
]


class _Loader(yaml.SafeLoader):
    """SafeLoader for what JSON can say too, and nothing else: no dates (2026-01-01 is a text), no
    aliases, keys are texts and given once. 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in patterns if tag in JSON_TAGS]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in JSON_TAGS}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # a few of aliases can mean gigabytes
            event = self.peek_event()
            raise _Refused(event, f"aliases such as *{event.anchor} are not read: write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        given = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
                words = key.value if isinstance(key, yaml.ScalarNode) else f"of a {key.id}"
                raise _Refused(key, f"key {words} is no text: put it in quotes")
            if key.value in given:
                raise _Refused(key, f"key '{key.value}' is given twice")
            given.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        if node.tag not in JSON_TAGS:
            raise _Refused(node, f"{node.tag} is not read, only what JSON can say")
        return super().construct_object(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts in quotes what `_Loader` would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _load(text: str, source: str) -> Any:
    """The text as YAML. Raises UserError, with the line or key, where it is none, or holds what
    JSON cannot say."""
    try:
        values = yaml.load(text, _Loader)
    except _Refused as error:
        raise UserError(f"{source}, line {error.line}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{source}: sections are nested too deeply") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # PyYAML's own constructors: !!int x, 0x_, numbers of thousands of digits
        raise UserError(f"{source} holds a value that cannot be read: {reason(error)}") from error
    _check_json(values, source)
    return values


DEEPEST = 50  # sections in sections


def _check_json(value: Any, source: str, keys: tuple[str, ...] = ()) -> None:
    """Raises UserError, with the key, for what JSON cannot say or no machine can hold: a number
    that is not finite or has more than 64 bits, text that is no Unicode or holds a NUL."""

    def refuse(words: str) -> UserError:
        return UserError(f"{source}: {'.'.join(keys) or 'config'}: {words}")

    if len(keys) > DEEPEST:
        raise UserError(f"{source}: {'.'.join(keys[:3])}...: sections are nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise refuse(f"key {key!r} is no text")
            _check_json(key, source, keys)
            _check_json(inner, source, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_json(inner, source, (*keys, str(i)))
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise refuse(f"{value[:50]!r} is no text that a file could hold")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise refuse(f"must be a finite number, got {value}")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise refuse("the number is too large")
    elif value is not None:
        raise refuse(f"{type(value).__name__} is not read: a number, a text, a list or a section")


def _merge(base: dict, top: dict) -> dict:
    """`top` over `base`, section by section; a section that names another `name` replaces the
    base's whole section."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        named = (
            isinstance(value, dict) and isinstance(old, dict) and "name" in value and "name" in old
        )
        other = named and value["name"] != old["name"]
        merged[key] = (
            _merge(old, value)
            if isinstance(value, dict) and isinstance(old, dict) and not other
            else value
        )
    return merged


def read_config(path: str | Path, overrides: list[str] = (), above: tuple[Path, ...] = ()) -> dict:
    """A YAML file over its `base:` (a path relative to the file, and so on), then
    `section.key=value` overrides.

    The overrides are taken together: their order matters only where one key is given twice. `above`
    are the files that this one is the base of.
    """
    path = Path(path)
    if not _is_file(path):
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"config {path} does not exist{nearest(path.name, near) if near else ''}")
    if path.resolve() in above:
        raise UserError(f"config {path}: its base files lead back to itself")
    values = _load(read_text(path), str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a config is a mapping of keys to values, not a {type(values).__name__}"
        )
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base: must be the path of one other config, got {base!r}")
        if len(above) == DEEPEST:
            raise UserError(f"{path}: base: {DEEPEST} files are based on one another: too many")
        values = _merge(read_config(path.parent / base, above=(*above, path.resolve())), values)
    return apply_overrides(values, overrides)


def base_of(path: str | Path) -> Path | None:
    """The file that a config's `base:` names; None where it has none."""
    values = _load(read_text(Path(path)), str(path))
    base = values.get("base") if isinstance(values, dict) else None
    return Path(path).parent / base if isinstance(base, str) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def apply_overrides(values: dict, overrides: list[str]) -> dict:
    """`values` with `section.key=value` overrides; each value is read as YAML, 1e-4 is a number.

    Raises:
        UserError: an override that is no key=value, or whose section is a single value.
    """
    overridden: dict = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise UserError(f"override '{override}' is not of the form key=value")
        value: Any = _load(text, f"override '{override}'")
        for given in (values, overridden):
            _check_sections(given, parts, override)
        for part in reversed(parts):
            value = {part: value}
        _check_json(value, f"override '{override[:100]}'")
        overridden = _merge(overridden, value)
    return _merge(values, overridden)


def _check_sections(values: dict, parts: list[str], override: str) -> None:
    """Raises UserError where an override means a key of what is no section."""
    section: Any = values
    for i, part in enumerate(parts[:-1], 1):
        section = section.get(part)
        if section is None:
            return
        if not isinstance(section, dict):
            kind = "a list" if isinstance(section, list) else f"{section!r:.50}"
            raise UserError(
                f"override '{override}': {'.'.join(parts[:i])} is {kind}, which has no keys"
            )


def _walk(cls: type[Strict], location: tuple) -> tuple[type[Strict] | None, list[str]]:
    """Follows a validation error's location from `cls`: the Strict class it leads to (None where it
    leads elsewhere), and the keys as the user wrote them, without the tags by which pydantic names
    the members of a union."""
    keys: list[str] = []
    members: dict[str, type[Strict]] = {}  # of the union that was just entered, by tag
    for part in location:
        if part in members:
            cls, members = members[part], {}
            continue
        keys.append(str(part))
        if isinstance(part, int) or cls is None:
            continue
        if part not in cls.model_fields:
            cls = None
            continue
        options, found = [cls.model_fields[part].annotation], []
        while options:
            option = options.pop(0)
            if get_origin(option) is Annotated:
                option, *rest = get_args(option)
                members |= {tag.tag: option for tag in rest if isinstance(tag, Tag)}
            if get_origin(option) in (list, tuple, dict, Union, UnionType):
                options = [
                    a for a in get_args(option) if a is not type(None) and a is not Ellipsis
                ] + options
            elif isinstance(option, type) and issubclass(option, Strict):
                found.append(option)
        cls = found[0] if found else None
    return cls, keys


def parse(cls: type[T], values: dict, source: str) -> T:
    """`values` as `cls`.

    Raises:
        UserError: the first mistake, with `source`, the dotted key, and the nearest right key or
            the expected type.
    """
    _check_json(values, source)
    try:
        # Through JSON, so that YAML lists become tuples while strings still do not become numbers.
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        _, keys = _walk(cls, first["loc"])
        key = ".".join(keys)
        if first["type"] == "extra_forbidden":
            section = _walk(cls, first["loc"][:-1])[0] or cls
            raise UserError(
                f"{source}: unknown key '{key}'{nearest(first['loc'][-1], section.model_fields)}"
            ) from error
        if first["type"] == "missing":
            raise UserError(f"{source}: key '{key}' is missing") from error
        if first["type"] == "union_tag_invalid":
            known = re.findall(r"'([^']+)'", first["ctx"]["expected_tags"])
            raise UserError(
                f"{source}: {key}: unknown name '{first['ctx']['tag']}'{nearest(first['ctx']['tag'], known)}"
            ) from error
        cause = first.get("ctx", {}).get("error")
        message = str(cause) if isinstance(cause, Exception) else first["msg"]
        given = (
            f", got {first['input']!r:.100}" if not isinstance(first["input"], (dict, list)) else ""
        )
        raise UserError(f"{source}: {key or 'config'}: {message}{given}") from error


def dump_config(config: Strict) -> str:
    """The resolved config as YAML, in the order of its fields."""
    values = config.model_dump(mode="json", serialize_as_any=True)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def config_sha256(config: Strict, without: tuple[str, ...] = ()) -> str:
    """Hash of the resolved config but for the sections `without`."""
    canonical = json.dumps(
        config.model_dump(mode="json", serialize_as_any=True, exclude=set(without)), sort_keys=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
