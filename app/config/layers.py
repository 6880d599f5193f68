"""Merge YAML files and `key=value` overrides, and remember who set each key.

The only door to OmegaConf. Files are merged left to right, interpolation is resolved over the
whole, lists are replaced and not appended, as upstream does. There is no environment layer:
`${oc.env:...}` is refused, so that a run's configuration is what its files and flags say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.config.problems import Problems, suggestion

SECTIONS = ("args", "model", "data", "deepspeed")
OVERRIDE = re.compile(r"^(args|model|data|deepspeed)\.[A-Za-z_][\w.\-\[\]]*=")
OVERRIDE_ORIGIN = "override "  # origin of a key set by key=value: this and the key
REFUSED_RESOLVER = re.compile(r"\$\{\s*oc\.(env|decode)\s*:")


@dataclass(slots=True)
class Merged:
    """Sections as plain containers, interpolation resolved; origins by dotted key."""

    sections: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    complete: bool = True  # False: a file could not be read, so nothing else can be judged

    def set_by_override(self, path: str) -> bool:
        """Whether `key=value` on the command line set this key."""
        return self.origins.get(path, "").startswith(OVERRIDE_ORIGIN)


def merge_layers(
    base: Sequence[str],
    deepspeed_file: str | None,
    overrides: Sequence[str],
    problems: Problems,
) -> Merged:
    """Merge all layers; mistakes go to `problems`, whose origins become those of the result."""
    merged = Merged()
    whole = OmegaConf.create({})
    layers = [(name, _read_layer(name, problems)) for name in base]
    if deepspeed_file is not None:
        layers.append((deepspeed_file, _read_deepspeed(deepspeed_file, problems)))
    for name, layer in layers:
        if layer is None:
            merged.complete = False
        else:
            whole = _add(whole, layer, name, merged.origins, problems)
    for text in overrides:
        _override(whole, text, merged.origins, problems)
    problems.origins = merged.origins
    _report_interpolations(whole, problems)
    resolved = OmegaConf.to_container(whole, resolve=True)
    assert isinstance(resolved, dict)
    merged.sections = {str(key): value for key, value in resolved.items() if value is not None}
    return merged


def _read_text(name: str, problems: Problems) -> str | None:
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        problems.add("the file is not UTF-8 text", where=name, fix="save it as UTF-8")
    except OSError as error:
        if "=" in name:
            problems.add(
                f"'{name}' is neither a file nor an override",
                where="the command line",
                fix="an override begins with args., model., data. or deepspeed.",
            )
            return None
        problems.add(
            f"the file cannot be read: {error.strerror or error}",
            where=name,
            fix="check the path",
        )
    return None


def _read_layer(name: str, problems: Problems) -> DictConfig | None:
    content = _read_text(name, problems)
    if content is None:
        return None
    try:
        layer = OmegaConf.create(content)
    except yaml.MarkedYAMLError as error:
        _report_yaml(name, content, error, problems)
        return None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        problems.add(f"the file cannot be parsed: {first}", where=name, fix="correct the YAML")
        return None
    if not isinstance(layer, DictConfig) or _is_bare_text(layer, content):
        problems.add(
            "the file holds no sections",
            where=name,
            fix="begin with one of args:, model:, data:, deepspeed:",
        )
        return None
    return layer


def _is_bare_text(layer: DictConfig, content: str) -> bool:
    """OmegaConf reads a lone word as {word: None}; which is not a section."""
    return ":" not in content and len(layer) == 1


def _report_yaml(name: str, content: str, error: yaml.MarkedYAMLError, problems: Problems) -> None:
    mark, lines = error.problem_mark, content.splitlines()
    if mark and mark.line >= len(lines):
        mark = error.context_mark  # something is not closed: where it begins
    where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent or "'\\t'" in str(error.problem):
        problems.add(
            "a tab where YAML needs spaces", where=where, fix="indent with spaces, never with tabs"
        )
        return
    what = error.problem or "syntax error"
    if error.context:
        what = f"{what} ({error.context})"
    problems.add(f"not valid YAML: {what}", where=where, fix="correct the line")


def _read_deepspeed(name: str, problems: Problems) -> DictConfig | None:
    layer = _read_layer(name, problems)
    if layer is None:
        return None
    if set(layer) == {"deepspeed"}:
        return layer
    return OmegaConf.create({"deepspeed": layer})


def _add(
    whole: DictConfig,
    layer: DictConfig,
    name: str,
    origins: dict[str, str],
    problems: Problems,
) -> DictConfig:
    plain = OmegaConf.to_container(layer, resolve=False)
    assert isinstance(plain, dict)
    for key in list(plain):
        if key not in SECTIONS:
            problems.add(
                f"unknown section '{key}'",
                where=f"{key} in {name}",
                fix=suggestion(str(key), SECTIONS),
            )
        elif plain[key] is not None and not isinstance(plain[key], Mapping):
            problems.add(
                f"section '{key}' is {plain[key]!r}",
                where=f"{key} in {name}",
                fix="indent its keys below it",
            )
        if key not in SECTIONS or not isinstance(plain[key], Mapping):
            del plain[key]
    if isinstance(plain.get("args"), Mapping):
        # Upstream's command line has dashes and its YAML underscores; both are accepted in both.
        plain["args"] = {str(key).replace("-", "_"): v for key, v in plain["args"].items()}
    _record(plain, "", name, origins)
    try:
        merged = OmegaConf.merge(whole, OmegaConf.create(plain))
    except (OmegaConfBaseException, ValueError) as error:
        problems.add(f"the file cannot be merged: {error}", where=name, fix="correct the key")
        return whole
    assert isinstance(merged, DictConfig)
    return merged


def _record(value: object, path: str, origin: str, origins: dict[str, str]) -> None:
    """Record who set each leaf; a leaf or a list replaces what was below it."""
    if isinstance(value, Mapping) and value:
        origins.pop(path, None)
        for key, entry in value.items():
            _record(entry, f"{path}.{key}" if path else str(key), origin, origins)
        return
    if not path:
        return
    below = f"{path}."
    for known in [key for key in origins if key.startswith(below)]:
        del origins[known]
    origins[path] = origin
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping):
                _record(entry, f"{path}.{index}", origin, origins)


def _override(whole: DictConfig, text: str, origins: dict[str, str], problems: Problems) -> None:
    key, _, raw = text.partition("=")
    if not OVERRIDE.match(text):
        problems.add(
            f"'{text}' is not an override",
            where="the command line",
            fix="write key.path=value, beginning with args., model., data. or deepspeed.",
        )
        return
    path = re.sub(r"\[(\d+)\]", r".\1", key)
    section, _, rest = path.partition(".")
    if section == "args":
        path = f"args.{rest.replace('-', '_')}"
    try:
        value = OmegaConf.from_dotlist([f"value={raw}"])["value"]
        OmegaConf.update(whole, path, value, merge=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, IndexError, TypeError) as error:
        problems.add(
            f"'{text}' cannot be applied: {str(error).splitlines()[0]}",
            where="the command line",
            fix="check the path and the quoting of the value",
        )
        return
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    _record(plain, path, f"{OVERRIDE_ORIGIN}{key}", origins)


def _report_interpolations(whole: DictConfig, problems: Problems) -> None:
    """Report values that cannot be resolved, and put null there so that the rest can be checked."""
    for path, value in _leaves(OmegaConf.to_container(whole, resolve=False), ""):
        if value == "???":
            problems.add("the value is missing (???)", where=path, fix="give a value")
        elif not isinstance(value, str) or "${" not in value:
            continue
        elif REFUSED_RESOLVER.search(value):
            problems.add(
                f"'{value}' reads the environment, which is not a layer of the configuration",
                where=path,
                fix=f"give {path}=VALUE on the command line",
            )
        elif (reason := _dangling(whole, path)) is not None:
            problems.add(
                f"the interpolation '{value}' cannot be resolved: {reason}",
                where=path,
                fix="name a key that exists, by its full path from the top",
            )
        else:
            continue
        problems.broken.add(path)
        OmegaConf.update(whole, path, None)


def _dangling(whole: DictConfig, path: str) -> str | None:
    """Why the interpolation at `path` fails; None if it does not."""
    try:
        OmegaConf.select(whole, path, throw_on_resolution_failure=True)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def _leaves(value: object, path: str) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        pairs = [(f"{path}.{key}" if path else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}.{index}", entry) for index, entry in enumerate(value)]
    else:
        return [(path, value)]
    return [leaf for below, entry in pairs for leaf in _leaves(entry, below)]
