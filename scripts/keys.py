"""The keys of a config, one line each: name, type, default and comment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import Tag
from pydantic_core import PydanticUndefined

from core.config import Strict


class Key(NamedTuple):
    """A key by its dotted name; of: where keys depend on a `name`, the name that has this one."""

    name: str
    type: str
    default: str
    comment: str | None
    of: str | None = None

    def __str__(self) -> str:
        words = ": ".join(word for word in (self.of, self.comment) if word)
        return f"{self.name:<26} {self.type:<28} {self.default:<18} {words}".rstrip()


def keys_of(
    cls: type[Strict], prefix: str = "", defaults: Any = None, of: str | None = None
) -> Iterator[Key]:
    """The keys of `cls` and of the sections in it. defaults: an instance of `cls` that is itself
    the default of a section."""
    for name, field in cls.model_fields.items():
        default = getattr(defaults, name) if isinstance(defaults, cls) else field.get_default()
        options = list(_options(field.annotation))
        plain = [_words(option) for option, _ in options if not _is_section(option)]
        if any(word != "null" for word in plain):
            words = "required" if default is PydanticUndefined else _default(default)
            yield Key(f"{prefix}{name}", " | ".join(plain), words, field.description, of)
        for option, tag in options:
            if _is_section(option):
                yield from keys_of(option, f"{prefix}{name}.", default, tag or of)


def _is_section(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, Strict)


def _options(annotation: Any, tag: str | None = None) -> Iterator[tuple[Any, str | None]]:
    """The members of a union, with the tags by which pydantic tells them apart."""
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        tag = next((one.tag for one in rest if isinstance(one, Tag)), tag)
        yield from _options(annotation, tag)
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    else:
        yield annotation, tag


def _words(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        inner, *rest = get_args(annotation)
        return (
            f"list of {_words(inner)}"
            if Ellipsis in rest
            else f"{1 + len(rest)} of {_words(inner)}"
        )
    return {"str": "text"}.get(annotation.__name__, annotation.__name__)


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
