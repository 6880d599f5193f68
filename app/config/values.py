"""The final value of every argument, from its layers, with the origin of each.

Layers, lowest precedence first: built-in default, YAML `args`, YAML `deepspeed`, a flag that was
given, `key=value`. Under `precedence: yaml` (upstream's rule, C4) a flag comes below both sections.
A number that two layers give differently is reported with both values and both origins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.config import upstream
from app.config.argument import Argument, Disposition, arguments_of
from app.config.arguments.data import SAMPLING
from app.config.arguments.table import ARGUMENTS
from app.config.command_line import COMMAND_LINE, CommandLine
from app.config.layers import Merged
from app.config.precision import Assignment, resolve_precision
from app.config.problems import Problems, suggestion
from app.config.reader import REQUIRED
from app.config.schema.run import CompatConfig, compat_of
from app.config.sections.deepspeed import HOMES, value_at
from app.errors import UsageError

DEFAULT, YAML_ARGS, YAML_SECTION, FLAG, OVERRIDE_ARGS, OVERRIDE_SECTION = range(6)
CHECKED_BY_UPSTREAM = ("split", "iterable_dataset", "iterable_dataset_eval")
YAML_FIRST = {FLAG: 0.5}  # a flag under `precedence: yaml`


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layer's value of one argument."""

    layer: int
    value: Any
    origin: str


@dataclass(slots=True)
class Values:
    """Final values of the arguments."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # argument -> file, flag or default
    compat: CompatConfig = field(default_factory=CompatConfig)

    def given(self, name: str) -> bool:
        """Whether any layer above the built-in default set the argument."""
        return self.origins.get(name, "default") != "default"


class _Layers:
    """Collects the candidates of every argument."""

    def __init__(self, merged: Merged, line: CommandLine, problems: Problems) -> None:
        self.merged = merged
        self.line = line
        self.problems = problems
        section = merged.sections.get("args")
        self.yaml: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
        deepspeed = merged.sections.get("deepspeed")
        self.section: Mapping[str, Any] | None = (
            deepspeed if isinstance(deepspeed, Mapping) else None
        )

    def of(self, argument: Argument, compat: CompatConfig, *, synced: bool) -> list[Candidate]:
        """All candidates of one argument, lowest precedence first, the default included."""
        name = argument.name
        found = [Candidate(DEFAULT, argument.default, "default")]
        if name in self.yaml and not argument.flag_only:
            path = f"args.{name}"
            layer = OVERRIDE_ARGS if self.merged.set_by_override(path) else YAML_ARGS
            found += self._converted(argument, self.yaml[name], path, layer)
        if synced and name in HOMES and self.section is not None:
            raw = value_at(self.section, HOMES[name])
            if raw is not REQUIRED:
                path = ".".join(("deepspeed", *HOMES[name]))
                layer = OVERRIDE_SECTION if self.merged.set_by_override(path) else YAML_SECTION
                found += self._converted(argument, raw, path, layer)
        if name in self.line.flags:
            value = flag_value(argument, self.line.flags[name], compat)
            found.append(Candidate(FLAG, value, f"flag {argument.flag}"))
        return sorted(found, key=lambda candidate: precedence(candidate.layer, compat))

    def _converted(self, argument: Argument, raw: object, path: str, layer: int) -> list[Candidate]:
        origin = self.merged.origins.get(path) or self.problems.locate(path)
        try:
            return [Candidate(layer, argument.kind.convert(raw), origin)]
        except (ValueError, TypeError, OverflowError):
            self.problems.add(
                f"'{path.rsplit('.', 1)[-1]}' is {raw!r}",
                where=path,
                fix=f"give {argument.kind.noun}",
            )
            return []


def precedence(layer: int, compat: CompatConfig) -> float:
    """Of two layers, the one with the greater number wins."""
    return YAML_FIRST.get(layer, layer) if compat.precedence == "yaml" else layer


def flag_value(argument: Argument, texts: Any, compat: CompatConfig) -> Any:
    """The value of a flag's text(s).

    Raises:
        UsageError: the text is not a value of this argument.
    """
    if compat.flag_types == "sat":
        found, value = upstream.flag_value_as_upstream(argument.name, texts)
        if found:
            return value
    raw = texts
    if argument.is_list and argument.kind.item is not None:
        raw = [texts] if isinstance(texts, str) else list(texts)
        if argument.kind.item.json_type == "integer" and len(raw) == 1:
            raw = raw[0].strip("[]").replace(",", " ").split()
    try:
        return argument.kind.convert(raw)
    except (ValueError, TypeError, OverflowError):
        shown = texts if isinstance(texts, str) else " ".join(texts)
        raise UsageError(
            f"{argument.flag} cannot be '{shown}'",
            where=COMMAND_LINE,
            fix=f"give {argument.kind.noun}",
        ) from None


def resolve(merged: Merged, line: CommandLine, problems: Problems) -> Values:
    """Resolve every argument; mistakes and clashes go to `problems`."""
    layers = _Layers(merged, line, problems)
    _check_yaml_names(layers, problems)
    result = Values(compat=_resolve_compat(layers))
    mode = layers.of(ARGUMENTS["mode"], result.compat, synced=False)[-1].value
    for argument in ARGUMENTS.values():
        synced = mode != "inference"
        if argument.name == "zero_stage" and result.compat.precedence == "yaml":
            synced = False  # upstream never reads the section's stage back into args
        candidates = layers.of(argument, result.compat, synced=synced)
        _choose(argument, candidates, result, problems)
    _precision(layers, result, problems, trains=mode != "inference")
    _check_rules(result, problems)
    return result


def _choose(
    argument: Argument, candidates: list[Candidate], result: Values, problems: Problems
) -> None:
    winner = candidates[-1]
    result.values[argument.name] = winner.value
    result.origins[argument.name] = winner.origin
    if argument.name in ("fp16", "bf16"):
        return  # resolved together, in app.config.precision
    for other in candidates[:-1]:
        if other.layer != DEFAULT and other.value != winner.value:
            problems.warn(
                f"{argument.name}: {shown(winner.value)} ({winner.origin}) wins over "
                f"{shown(other.value)} ({other.origin})"
            )


def plain(value: object) -> object:
    """Tuples as lists, as YAML and upstream's Namespace have them."""
    return list(value) if isinstance(value, tuple) else value


def shown(value: object) -> str:
    """A value in a message or a table, as YAML writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return str(plain(value))


def _check_yaml_names(layers: _Layers, problems: Problems) -> None:
    names = [name for name, argument in ARGUMENTS.items() if not argument.flag_only]
    for name, value in layers.yaml.items():
        path = f"args.{name}"
        if name == "deepspeed" and isinstance(value, Mapping):
            problems.add(
                "section 'deepspeed' is indented below 'args'",
                where=path,
                fix="move 'deepspeed:' to the left margin",
            )
        elif name in ARGUMENTS and ARGUMENTS[name].flag_only:
            problems.add(
                f"'{name}' cannot be set in YAML",
                where=path,
                fix=f"give {ARGUMENTS[name].flag} on the command line",
            )
        elif name not in ARGUMENTS:
            problems.add(f"unknown key '{name}'", where=path, fix=suggestion(name, names))


def _resolve_compat(layers: _Layers) -> CompatConfig:
    plain = CompatConfig()
    return compat_of(
        {
            argument.name: layers.of(argument, plain, synced=False)[-1].value
            for _, argument in arguments_of(CompatConfig)
        }
    )


def _precision(layers: _Layers, result: Values, problems: Problems, *, trains: bool) -> None:
    """Set fp16 and bf16 from all layers together: at most one of them is on."""
    assignments: list[Assignment] = []
    for name in ("fp16", "bf16"):
        for candidate in layers.of(ARGUMENTS[name], result.compat, synced=False)[1:]:
            place = precedence(candidate.layer, result.compat)
            assignments.append(Assignment(place, name, candidate.value, candidate.origin))
    if trains and layers.section is not None:
        assignments += _section_precision(layers, layers.section, result.compat)
    outcome = resolve_precision(assignments, problems)
    stage = value_at(layers.section or {}, HOMES["zero_stage"])
    stage = result.values["zero_stage"] if stage is REQUIRED else stage
    if trains and stage and not outcome.is_named:
        named = layers.section is not None
        problems.add(
            f"ZeRO stage {stage} without a precision",
            where="deepspeed.zero_optimization.stage" if named else "args.zero_stage",
            fix="set deepspeed.bf16.enabled: true (--bf16), or false for fp32",
        )
    result.values |= {"fp16": outcome.fp16, "bf16": outcome.bf16}
    result.origins |= outcome.origins


def _section_precision(
    layers: _Layers, section: Mapping[str, Any], compat: CompatConfig
) -> list[Assignment]:
    found = []
    for name in ("fp16", "bf16"):
        raw = value_at(section, (name, "enabled"))
        path = f"deepspeed.{name}.enabled"
        if raw is not REQUIRED:
            overridden = layers.merged.set_by_override(path)
            layer = OVERRIDE_SECTION if overridden else YAML_SECTION
            for candidate in layers._converted(ARGUMENTS[name], raw, path, layer):
                place = precedence(layer, compat)
                found.append(Assignment(place, name, candidate.value, candidate.origin))
    if not found and compat.section_precision == "sat":
        # Upstream reads a section without precision keys as fp32, whatever args say (C11).
        origin = f"{layers.problems.locate('deepspeed')}, which names no precision"
        place = precedence(YAML_SECTION, compat)
        found = [Assignment(place, name, False, origin, silent=True) for name in ("fp16", "bf16")]
    return found


def _check_rules(result: Values, problems: Problems) -> None:
    """Rules between arguments, upstream's assertions among them."""
    values, origins = result.values, result.origins
    if values["train_iters"] is not None and values["epochs"] is not None:
        problems.add(
            f"train_iters ({values['train_iters']}, {origins['train_iters']}) and epochs "
            f"({values['epochs']}, {origins['epochs']}) are both given",
            where="args.epochs",
            fix="keep one of them; args.train_iters=null removes the other",
        )
    if values["train_iters"] is None and values["epochs"] is None:
        values["train_iters"] = 10000
    weights, sources = values["train_data_weights"], values["train_data"]
    if weights is not None and len(weights) != len(sources or ()):
        problems.add(
            f"{len(weights)} weights for {len(sources or ())} entries of train_data",
            where="args.train_data_weights",
            fix="give one weight for each entry",
        )
    if result.given("split"):
        upstream.check_split(values, problems)
    sampling = values["mode"] == "inference"
    for name, argument in ARGUMENTS.items():
        read = name in CHECKED_BY_UPSTREAM or (sampling and argument.group == SAMPLING)
        if result.given(name) and values[name] != argument.default and not read:
            _dispose(argument, problems)


def _dispose(argument: Argument, problems: Problems) -> None:
    path = f"args.{argument.name}"
    if argument.disposition is Disposition.LATER:
        problems.add(
            f"'{argument.name}' cannot be used yet: {argument.note}",
            where=path,
            fix="leave it out",
        )
    elif argument.disposition is Disposition.ACCEPTED:
        problems.warn(f"'{argument.name}' has no effect: {argument.note}", where=path)
