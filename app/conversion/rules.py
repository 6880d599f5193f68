"""A table of rules turns the tensor names of one layout into those of another, and back.

A template is a name with fields in braces: {i} and {j} are layer numbers, {p} is weight or bias,
{rest} is any remainder. A field is the same text on both sides of a rule.

The plan is made from names alone, before anything is read: a name without a rule, and a rule that
met no name, are errors. Tensors are read one step at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from app.errors import WeightsError

FIELDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "rest": ".+"}


@dataclass(frozen=True)
class Rename:
    """One tensor, another name."""

    source: str
    target: str
    required: bool = True  # False: models without this tensor exist


@dataclass(frozen=True)
class Split:
    """Rows of one tensor, cut into equal parts and dealt out to several names.

    `parts` gives for every target the parts that it gets, in order; None: one each.
    """

    source: str
    targets: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...] | None = None
    required: bool = True

    def dealt(self) -> tuple[tuple[int, ...], ...]:
        return self.parts or tuple((index,) for index in range(len(self.targets)))


@dataclass(frozen=True)
class Concat:
    """The inverse of Split: rows of several tensors, put together under one name."""

    sources: tuple[str, ...]
    target: str
    parts: tuple[tuple[int, ...], ...] | None = None
    required: bool = True


@dataclass(frozen=True)
class Reshape:
    """One tensor in another shape: flattened to (rows, rest), or unflattened to `trailing`.

    `trailing` is the size of the last axes; the axis before them takes what remains. None flattens
    everything after the first axis (a tensor that is 2-D already stays as it is).
    """

    source: str
    target: str
    trailing: tuple[int, ...] | None = None
    source_trailing: tuple[int, ...] | None = None  # of the source, for the way back
    required: bool = True


@dataclass(frozen=True)
class Drop:
    """A tensor that has no place on the other side."""

    source: str
    why: str


Rule = Rename | Split | Concat | Reshape | Drop


@dataclass(frozen=True)
class Step:
    """One rule met by concrete names."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def run(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Read the sources and make the targets. Results may be views of what was read."""
        tensors = [read(name) for name in self.sources]
        match self.rule:
            case Split():
                made = _split(tensors[0], self.rule.dealt(), self.sources[0])
            case Concat():
                made = [_concat(tensors, self.rule)]
            case Reshape():
                made = [_reshaped(tensors[0], self.rule.trailing)]
            case _:
                made = tensors
        return dict(zip(self.targets, made, strict=False))  # a dropped tensor has no target


def inverse(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The table for the way back. What was dropped does not come back."""
    turned: list[Rule] = []
    for rule in rules:
        match rule:
            case Rename():
                turned.append(replace(rule, source=rule.target, target=rule.source))
            case Split():
                turned.append(Concat(rule.targets, rule.source, rule.parts, rule.required))
            case Concat():
                turned.append(Split(rule.target, rule.sources, rule.parts, rule.required))
            case Reshape():
                turned.append(
                    Reshape(
                        rule.target,
                        rule.source,
                        rule.source_trailing,
                        rule.trailing,
                        rule.required,
                    )
                )
            case Drop():
                pass
    return tuple(turned)


@dataclass
class _Matched:
    """Names that met a rule, by the text of their fields, then by position among its sources."""

    rule: Rule
    met: dict[tuple[tuple[str, str], ...], dict[int, str]] = field(default_factory=dict)


def plan(names: Iterable[str], rules: Sequence[Rule], where: str, *, partial: bool) -> list[Step]:
    """Match names with rules, in the order of the rules.

    Args:
        names: all tensor names of the source.
        rules: the table.
        where: the file, for errors.
        partial: the source holds only some tensors (adapters alone): a rule may meet no name.

    Raises:
        WeightsError: a name has no rule, a required rule met no name, or only some of the tensors
            that belong together are there.
    """
    matched = [_Matched(rule) for rule in rules]
    patterns = [
        (entry, position, _pattern(template))
        for entry in matched
        for position, template in enumerate(_sources(entry.rule))
    ]
    unknown = []
    for name in names:
        for entry, position, pattern in patterns:
            found = pattern.fullmatch(name)
            if found is not None:
                key = tuple(sorted(found.groupdict().items()))
                entry.met.setdefault(key, {})[position] = name
                break
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors have a name that no rule knows, first: "
            f"{', '.join(unknown[:3])}",
            where=where,
            fix="check that the file holds a CogVideoX network of the requested layout",
        )
    if not partial:
        _check_all_met(matched, where)
    return [step for entry in matched for step in _steps(entry, where)]


def apply_rules(
    names: Iterable[str],
    read: Callable[[str], Tensor],
    rules: Sequence[Rule],
    where: str,
    *,
    partial: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the other layout, one step of reading at a time (see `plan`)."""
    for step in plan(names, rules, where, partial=partial):
        yield from step.run(read).items()


def counterparts(name: str, rules: Sequence[Rule]) -> tuple[str, ...]:
    """The names on the other side that hold (part of) the tensor `name`; empty if no rule fits."""
    for rule in rules:
        for template in _sources(rule):
            found = _pattern(template).fullmatch(name)
            if found is not None:
                return tuple(target.format(**found.groupdict()) for target in _targets(rule))
    return ()


def _check_all_met(matched: Sequence[_Matched], where: str) -> None:
    for entry in matched:
        if not entry.met and not isinstance(entry.rule, Drop) and entry.rule.required:
            raise WeightsError(
                f"no tensor is named like {' or '.join(_sources(entry.rule))}",
                where=where,
                fix="the file is incomplete, or holds another kind of network",
            )


def _steps(entry: _Matched, where: str) -> Iterator[Step]:
    templates = _sources(entry.rule)
    for key, by_position in entry.met.items():
        fields = dict(key)
        missing = [
            template.format(**fields)
            for position, template in enumerate(templates)
            if position not in by_position
        ]
        if missing:
            raise WeightsError(
                f"{missing[0]} is missing, but {next(iter(by_position.values()))} is there",
                where=where,
                fix="the file is incomplete",
            )
        sources = tuple(by_position[position] for position in range(len(templates)))
        targets = tuple(template.format(**fields) for template in _targets(entry.rule))
        yield Step(entry.rule, sources, targets)


def _sources(rule: Rule) -> tuple[str, ...]:
    return rule.sources if isinstance(rule, Concat) else (rule.source,)


def _targets(rule: Rule) -> tuple[str, ...]:
    match rule:
        case Split():
            return rule.targets
        case Drop():
            return ()
        case _:
            return (rule.target,)


def _pattern(template: str) -> re.Pattern[str]:
    literal_and_fields = re.split(r"\{(\w+)\}", template)
    text = "".join(
        re.escape(piece) if index % 2 == 0 else f"(?P<{piece}>{FIELDS[piece]})"
        for index, piece in enumerate(literal_and_fields)
    )
    return re.compile(text)


def _split(tensor: Tensor, dealt: tuple[tuple[int, ...], ...], name: str) -> list[Tensor]:
    count = sum(len(indices) for indices in dealt)
    if tensor.shape[0] % count:
        raise WeightsError(
            f"{tensor.shape[0]} rows do not divide into {count} equal parts",
            where=name,
            fix="check that the file holds a CogVideoX network of the requested layout",
        )
    rows = tensor.chunk(count)
    return [
        rows[indices[0]] if len(indices) == 1 else torch.cat([rows[index] for index in indices])
        for indices in dealt
    ]


def _concat(tensors: Sequence[Tensor], rule: Concat) -> Tensor:
    if rule.parts is None:
        return torch.cat(list(tensors))
    rows: dict[int, Tensor] = {}
    for tensor, indices in zip(tensors, rule.parts, strict=True):
        rows.update(zip(indices, tensor.chunk(len(indices)), strict=True))
    return torch.cat([rows[index] for index in sorted(rows)])


def _reshaped(tensor: Tensor, trailing: tuple[int, ...] | None) -> Tensor:
    if trailing is None:
        return tensor.flatten(1)
    return tensor.reshape(tensor.shape[0], -1, *trailing)
