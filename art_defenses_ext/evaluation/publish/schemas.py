"""JSON schemas of a run's report and entry, made from the declarations of these files.

Source: JSON Schema, draft 2020-12. **Convention**: a field without a default is required, and no other fields are
allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from art_defenses_ext.evaluation.publish.leaderboard import FORMAT as ENTRY_FORMAT, Entry
from art_defenses_ext.evaluation.results.summary import FORMAT as REPORT_FORMAT, Summary

DRAFT = "https://json-schema.org/draft/2020-12/schema"

SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", NoneType: "null"}

Schema = dict[str, Any]


def report_schema() -> Schema:
    """Return the schema of ``report.json``."""
    schema = _of_dataclass(Summary)
    figures = {Summary.IN_FILE.get(name, name): figure for name, figure in schema["properties"].items()}
    required = [Summary.IN_FILE.get(name, name) for name in schema["required"]]
    with_format = {"properties": {"format": {"const": REPORT_FORMAT}} | figures, "required": ["format", *required]}
    return {"$schema": DRAFT} | schema | with_format


def entry_schema() -> Schema:
    """Return the schema of an entry, as ``art-defenses entry`` writes it."""
    schema = _of_dataclass(Entry)
    return {"$schema": DRAFT} | schema | {"properties": schema["properties"] | {"format": {"const": ENTRY_FORMAT}}}


def _of_dataclass(kind: Any) -> Schema:
    """Return the schema of a figure as :func:`.plain` writes it: its fields and derived properties."""
    hints = get_type_hints(kind, include_extras=True)
    optional = {each.name for each in fields(kind) if (each.default, each.default_factory) != (MISSING, MISSING)}
    named = {each.name: hints[each.name] for each in fields(kind)}
    named |= {name: get_type_hints(getattr(kind, name).fget)["return"] for name in getattr(kind, "DERIVED", ())}
    return {
        "type": "object",
        "description": (getdoc(kind) or "").partition("\n")[0],
        "properties": {name: _of(hint) for name, hint in named.items()},
        "required": [name for name in named if name not in optional],
        "additionalProperties": False,
    }


def _of(hint: Any) -> Schema:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _of_dataclass(hint)
    if hint in SIMPLE:
        return {"type": SIMPLE[hint]}
    if origin is Annotated:
        return _of(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [_of(each) for each in arguments]}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    if origin is list or arguments[1:] == (...,):
        return {"type": "array", "items": _of(arguments[0])}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_of(each) for each in arguments], "minItems": len(arguments)}
    if hint is Any:
        return {}
    raise TypeError(f"{hint} has no form in JSON")
