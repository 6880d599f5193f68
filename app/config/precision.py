"""fp16 and bf16, resolved together: at most one is on, and one switches the other off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from app.config.problems import Problems

OTHER = {"fp16": "bf16", "bf16": "fp16"}


@dataclass(frozen=True, slots=True)
class Assignment:
    """One layer says whether one precision is on."""

    precedence: float  # of its layer
    name: str  # fp16 or bf16
    enabled: bool
    origin: str
    silent: bool = False  # follows from what is left out


@dataclass(slots=True)
class Precision:
    """The outcome."""

    fp16: bool = False
    bf16: bool = False
    is_named: bool = False  # whether any layer names a precision, fp32 (both off) included
    origins: dict[str, str] = field(default_factory=dict)


def resolve_precision(assignments: Sequence[Assignment], problems: Problems) -> Precision:
    """Apply the layers, lowest precedence first."""
    state = {"fp16": False, "bf16": False}
    origins = {"fp16": "default", "bf16": "default"}
    ordered = sorted(assignments, key=lambda assignment: assignment.precedence)
    for _, group in groupby(ordered, key=lambda assignment: assignment.precedence):
        layer = list(group)
        switched_on = [assignment for assignment in layer if assignment.enabled]
        if len({assignment.name for assignment in switched_on}) > 1:
            shown = " and ".join(f"{one.name} ({one.origin})" for one in switched_on)
            problems.add(
                f"{shown} are both on", where="args.fp16, args.bf16", fix="keep one of them"
            )
            continue
        for assignment in layer:
            _apply(assignment, state, origins, problems)
        for assignment in switched_on:
            _exclude(assignment, state, origins, problems)
    return Precision(
        fp16=state["fp16"],
        bf16=state["bf16"],
        is_named=any(not assignment.silent for assignment in assignments),
        origins=origins,
    )


def _apply(
    assignment: Assignment, state: dict[str, bool], origins: dict[str, str], problems: Problems
) -> None:
    name = assignment.name
    if origins[name] != "default" and state[name] != assignment.enabled:
        problems.warn(
            f"{name}: {str(assignment.enabled).lower()} ({assignment.origin}) wins over "
            f"{str(state[name]).lower()} ({origins[name]})"
        )
    state[name] = assignment.enabled
    origins[name] = assignment.origin


def _exclude(
    assignment: Assignment, state: dict[str, bool], origins: dict[str, str], problems: Problems
) -> None:
    other = OTHER[assignment.name]
    if state[other]:
        problems.warn(
            f"{assignment.name} ({assignment.origin}) switches {other} off ({origins[other]})"
        )
        state[other] = False
        origins[other] = assignment.origin
