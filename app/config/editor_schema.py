"""JSON schema of the YAML files, for editors: completion, and wrong keys and values underlined.

It is derived: section `args` from the table of arguments, the others from the keys that their
readers ask for while they read the files of a folder. An editor sees one file and no layers, so
nothing is required, an interpolation stands for any value, and the params beside a `target` that
is not ours are free. The judge is `cogvx config check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.config.arguments.table import ARGUMENTS
from app.config.kinds import FALSE_WORDS, TRUE_WORDS, Kind
from app.config.layers import SECTIONS, merge_layers
from app.config.problems import Problems
from app.config.reader import Context, names_of
from app.config.sections.data import read_data
from app.config.sections.deepspeed import HOMES, check_section, read_optimizer
from app.config.sections.model import read_model
from app.config.target import Registry

INTERPOLATION = r"\$\{.+\}"
SWITCHES = sorted(
    {form for word in TRUE_WORDS | FALSE_WORDS for form in (word, word.title(), word.upper())}
)
# Texts that count as a value of a type (app.config.kinds); YAML 1.1 reads 1e-8 as text.
TEXTS = {
    "integer": r"^[-+]?\d+(\.0*)?$",
    "number": r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$",
    "boolean": f"^({'|'.join(SWITCHES)})$",
    "null": "^([Nn]one|[Nn]ull|NONE|NULL)$",
}


def of_kind(kind: Kind) -> dict[str, Any]:
    """The schema of one value, in every spelling that the kind accepts."""
    types, limits = _types(kind), dict(kind.limits)
    if kind.item is not None and kind.single:
        types |= _types(kind.item)
        limits |= kind.item.limits
    texts = "|".join([INTERPOLATION, *(TEXTS[name] for name in sorted(types & set(TEXTS)))])
    found: dict[str, Any] = {"description": kind.noun}
    values = limits.get("enum", kind.choices)
    if values:
        whole = list(dict.fromkeys([*values, *([None] if "null" in types else [])]))
        return found | {"anyOf": [{"enum": whole}, {"type": "string", "pattern": texts}]}
    if kind.item is not None:
        found["items"] = of_kind(kind.item)
    if "boolean" in types:
        types.add("integer")
        limits |= {"minimum": 0, "maximum": 1}
    if "string" in types:
        types.add("number")
    else:
        found["pattern"] = texts
    return found | {"type": sorted(types | {"string"}), **limits}


def _types(kind: Kind) -> set[str]:
    return {kind.json_type} if isinstance(kind.json_type, str) else set(kind.json_type)


def accepted_keys(folder: Path, targets: Registry) -> dict[str, Kind | None]:
    """Every key outside `args` that is read while the files of a folder are, by dotted path."""
    problems = Problems()
    context = Context(targets, problems)
    for file in sorted(folder.rglob("*.yaml")):
        sections = merge_layers([str(file)], None, [], Problems()).sections
        if "model" in sections:
            read_model(sections["model"], "model", context)
        if "data" in sections:
            own: dict[str, Any] = {"order": {}, "quarantine": {}}
            for name in names_of("dataset", targets):
                read_data({**sections["data"], **own, "target": name}, "data", context)
        if "deepspeed" in sections:
            check_section(sections["deepspeed"], "deepspeed", context)
            read_optimizer(sections["deepspeed"]["optimizer"], "deepspeed.optimizer", context)
    homes = {".".join(("deepspeed", *HOMES[name])): ARGUMENTS[name].kind for name in HOMES}
    return problems.accepted | homes


def editor_schema(folder: Path, targets: Registry) -> dict[str, Any]:
    """The schema of a configuration file; `folder` holds files that reach every section."""
    root: dict[str, Any] = {"properties": {name: {} for name in SECTIONS}}
    for path, kind in accepted_keys(folder, targets).items():
        node = root
        for key in path.split("."):
            if key.isdigit():
                node = node.setdefault("items", {})
            else:
                node = node.setdefault("properties", {}).setdefault(key, {})
        node |= of_kind(kind) if kind is not None else {}
    arguments = {
        argument.name: of_kind(argument.kind)
        | {"description": f"{argument.help} ({argument.kind.noun})", "default": argument.default}
        for argument in ARGUMENTS.values()
        if not argument.flag_only
    }
    root["properties"]["args"] = {"properties": arguments, "patternProperties": {"-": {}}}
    closed: dict[str, Any] = _closed(root)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **closed}


def _closed(node: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with sections as mappings that hold no other keys."""
    found = dict(node)
    if "items" in node and "properties" in node["items"]:
        found["items"] = _closed(node["items"])
    if "properties" not in node:
        return found
    found["properties"] = {key: _closed(one) for key, one in sorted(node["properties"].items())}
    found |= {"type": ["object", "null", "string"], "pattern": INTERPOLATION}
    found["additionalProperties"] = False
    target, params = found["properties"].get("target"), found["properties"].get("params")
    if target is not None:
        ours = target["anyOf"][0]["enum"]
        found["properties"]["target"] = {"type": "string", "examples": ours}
        if params:
            found["properties"]["params"] = {}
            found["if"] = {"properties": {"target": {"enum": ours}}}
            found["then"] = {"properties": {"params": params}}
    return found
