"""Typed, frozen, strict configuration: YAML with a `base:` file, `key=value` overrides, one clear
line for every mistake."""

from __future__ import annotations

import hashlib
import json
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

from core.errors import UserError, nearest
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


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses a key given
    twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {k for k in keys if keys.count(k) > 1}:
            raise yaml.YAMLError(f"key '{min(map(str, twice))}' is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


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
    if path.resolve() in above:
        raise UserError(f"config {path}: its base files lead back to itself")
    if not path.is_file():
        raise UserError(
            f"config {path} does not exist{nearest(path.name, [p.name for p in path.parent.glob('*.yaml')])}"
        )
    values = _load(read_text(path), str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a config is a mapping of keys to values, not a {type(values).__name__}"
        )
    if base := values.pop("base", None):
        values = _merge(read_config(path.parent / base, above=(*above, path.resolve())), values)
    return apply_overrides(values, overrides)


def apply_overrides(values: dict, overrides: list[str]) -> dict:
    """`values` with `section.key=value` overrides; each value is read as YAML, 1e-4 is a number."""
    overridden: dict = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override '{override}' is not of the form key=value")
        nested: Any = _load(text, f"override '{override}'")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        overridden = _merge(overridden, nested)
    return _merge(values, overridden)


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
        given = f", got {first['input']!r}" if not isinstance(first["input"], (dict, list)) else ""
        raise UserError(f"{source}: {key or 'config'}: {message}{given}") from error
    except TypeError as error:
        raise UserError(f"{source}: {error}") from error


def dump_config(config: Strict) -> str:
    """The resolved config as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json", serialize_as_any=True), sort_keys=False)


def config_sha256(config: Strict, without: tuple[str, ...] = ()) -> str:
    """Hash of the resolved config but for the sections `without`."""
    canonical = json.dumps(
        config.model_dump(mode="json", serialize_as_any=True, exclude=set(without)), sort_keys=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
