"""`cogvx config check|show|arguments|schema`: the merged configuration, without torch.

check      every mistake in one run; warnings for what a run would still lack
show       the merged configuration; with --origin, who set each key
arguments  the table of all arguments, as docs/configuration.md and schemas have it
schema     JSON schema of the files, for editors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.cli import output
from app.config.arguments.page import as_records, table_page, with_table
from app.config.editor_schema import editor_schema
from app.config.load import load_config
from app.config.runnable import lacking
from app.config.schema.run import RunConfig
from app.config.snapshot import digest, masked, snapshot
from app.errors import CogvxError, ConfigErrors, UsageError
from app.registry import TARGETS

ACTIONS = ("check", "show", "arguments", "schema")
EPILOG = """
examples:
  cogvx config check --base configs/cogvideox_2b_lora.yaml configs/sft.yaml
  cogvx config show --origin --base configs/cogvideox_2b.yaml configs/sft.yaml --lr 1e-5
  cogvx config arguments --write docs/configuration.md
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command; everything behind the action goes to the configuration."""
    parser.epilog = EPILOG
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument(
        "rest",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="--base FILE ..., flags and key=value as for `cogvx train`; --json; --origin (show)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do the action; return the exit code."""
    words = list(arguments.rest)
    as_json = _take(words, "--json")
    if arguments.action == "arguments":
        return _arguments(words, as_json=as_json)
    if arguments.action == "schema":
        return _schema(words)
    with_origin = _take(words, "--origin")
    if arguments.action == "show":
        return _show(load_config(words, TARGETS), as_json=as_json, with_origin=with_origin)
    return _check(words, as_json=as_json)


def _take(words: list[str], flag: str) -> bool:
    """Remove a flag of this command from the words of the configuration."""
    found = flag in words
    while flag in words:
        words.remove(flag)
    return found


def _check(words: list[str], *, as_json: bool) -> int:
    try:
        config = load_config(words, TARGETS)
    except CogvxError as error:
        if not as_json:
            raise
        output.as_json({"ok": False, "errors": _records(error), "warnings": []})
        return error.exit_code
    missing = lacking(config)
    warnings = [*config.warnings, *missing.warnings]
    if as_json:
        output.as_json(
            {
                "ok": True,
                "runnable": not missing.errors,
                "run_id": config.run_id,
                "digest": digest(snapshot(config)),
                "errors": [],
                "before_a_run": [_record(error) for error in missing.errors],
                "warnings": warnings,
            }
        )
        return 0
    for warning in warnings:
        output.note(f"warning: {warning}")
    for mistake in missing.errors:
        output.note(f"warning: a run would not start: {mistake}")
    output.line(f"ok: {len(warnings)} warnings, run_id {config.run_id}")
    return 0


def _records(error: CogvxError) -> list[dict[str, object]]:
    errors = error.errors if isinstance(error, ConfigErrors) else (error,)
    return [_record(one) for one in errors]


def _record(error: CogvxError) -> dict[str, object]:
    return {
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
        "exit_code": error.exit_code,
    }


def _show(config: RunConfig, *, as_json: bool, with_origin: bool) -> int:
    if not with_origin:
        text = snapshot(config)
        if as_json:
            output.as_json({"args": masked(dict(config.arguments)), **_sections(config)})
        else:
            output.line(text.rstrip())
        return 0
    rows = list(origin_rows(config))
    if as_json:
        output.as_json({key: {"value": value, "origin": who} for key, value, who in rows})
    else:
        width = max(len(key) for key, _, _ in rows)
        for key, value, who in rows:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            output.line(f"{key:<{width}}  {shown}  [{who}]")
    return 0


def _sections(config: RunConfig) -> dict[str, object]:
    return {name: masked(section, name) for name, section in config.sections.items()}


def origin_rows(config: RunConfig) -> Iterator[tuple[str, object, str]]:
    """(dotted key, value with secrets masked, who set it) of every key of the run."""
    whole = {"args": masked(dict(config.arguments)), **_sections(config)}
    for key, value in _leaves(whole, ""):
        yield key, value, origin_of(key, config.origins)


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """Who set the key: its own origin, or that of the list or section that holds it."""
    probe = key
    while probe:
        if probe in origins:
            return origins[probe]
        probe = probe.rpartition(".")[0]
    return "default"


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{path}.{index}")
    else:
        yield path, value


def _arguments(words: list[str], *, as_json: bool) -> int:
    if as_json:
        output.as_json(as_records())
        return 0
    if not words:
        output.line(table_page())
        return 0
    if words[0] != "--write" or len(words) != 2:
        raise UsageError(
            f"'{words[0]}' is not an option of this action",
            where="cogvx config arguments",
            fix="give --json, or --write FILE",
        )
    path = Path(words[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _schema(words: list[str]) -> int:
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise UsageError(
            f"'{' '.join(words)}' is not a folder",
            where="cogvx config schema",
            fix="give the folder of the stock files: cogvx config schema configs",
        )
    output.as_json(editor_schema(Path(words[0]), TARGETS))
    return 0
