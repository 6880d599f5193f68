"""Reading a section: every mistake has its path, and one mistake hides no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from app.config.kinds import integer, text
from app.config.problems import Problems
from app.config.reader import Context, Field, Reader, constant, open_part, rows
from app.config.target import OWN, RegistryRow


@dataclass(frozen=True)
class Schema:
    size: int
    steps: int = 50
    note: str | None = None


TABLE = rows(
    Schema,
    Field("size", integer(1)),
    Field("num_steps", integer(1), name="steps"),
    Field("note", text()),
    constant("kind", "plain", "another kind is not supported"),
)
TARGETS = {
    "a.Plain": RegistryRow(Schema, "m:Plain", role="sampler"),
    "a.Other": RegistryRow(dict, "m:Other", role="loss"),
    "my.Own": RegistryRow(dict, "my:Own", role=OWN),
}


def read(node: object) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    problems = Problems()
    reader = Reader(node, "model.part", problems)
    found = reader.fields(TABLE)
    reader.close()
    return found, [(error.what, error.where) for error in problems.errors]


def test_fields_have_the_names_and_defaults_of_the_schema_class() -> None:
    found, errors = read({"size": "3", "kind": "plain"})

    assert errors == []
    assert Schema(**found) == Schema(3)
    assert Schema(**read({"size": 3, "num_steps": 7, "note": None})[0]) == Schema(3, 7)


def test_all_mistakes_of_a_section_are_reported_with_their_paths() -> None:
    found, errors = read({"num_steps": 0, "not": "x", "kind": "fancy"})

    assert errors == [
        ("'size' is missing", "model.part.size"),
        ("'num_steps' is 0", "model.part.num_steps"),
        ("'kind' is 'fancy'", "model.part.kind"),
        ("unknown key 'not'", "model.part.not"),
    ]
    assert found == {"size": None, "steps": 50, "note": None}


def test_a_value_in_the_place_of_a_section_is_a_mistake() -> None:
    assert read(5)[1][0] == ("expected a section of keys, found 5", "model.part")
    assert read(None)[1] == [("'size' is missing", "model.part.size")]


def test_a_key_without_effect_is_a_warning_and_not_unknown() -> None:
    problems = Problems()
    reader = Reader({"seed": 1}, "data", problems)

    reader.dead({"seed": "the order has its own", "other": "it is gone"})
    reader.close()

    assert problems.errors == []
    assert problems.warnings == ["data.seed: 'seed' has no effect: the order has its own"]


def opened(node: object, role: str = "sampler") -> tuple[Any, list[str]]:
    problems = Problems()
    part = open_part(node, "model.part", role, Context(TARGETS, problems))
    return part, [f"{error.what} | {error.where} | {error.fix}" for error in problems.errors]


def test_a_target_has_the_role_of_its_place_or_is_the_users_own() -> None:
    plain, errors = opened({"target": "a.Plain", "params": {"size": 3}})
    assert errors == []
    assert plain.component("p").implementation == "m:Plain"
    assert plain.params.values == {"size": 3}
    assert not plain.registered

    own, errors = opened({"target": "my.Own"})
    assert errors == []
    assert own.registered
    assert opened({"target": "my.Own"}, "loss")[1][0].startswith(
        "a class of your own cannot be a loss: 'my.Own' | model.part.target"
    )


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (None, "section is missing or empty | model.part |"),
        ({"params": {}}, "'target' is missing | model.part.target | valid here: a.Plain"),
        ({"target": "a.Plian"}, "unknown target 'a.Plian' | model.part.target | did you mean"),
        ({"target": "a.Other"}, "target 'a.Other' is not a sampler | model.part.target |"),
    ],
)
def test_a_target_that_is_not_valid_is_named(node: object, what: str) -> None:
    part, errors = opened(node)

    assert part is None
    assert len(errors) == 1
    assert errors[0].startswith(what)


def test_params_below_a_wrong_name_are_read_as_those_they_look_like() -> None:
    part, errors = opened({"target": "no.Such", "params": {"size": 1, "steps": 2}})

    assert len(errors) == 1
    assert part.target is TARGETS["a.Plain"]
