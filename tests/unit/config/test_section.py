"""Sections as upstream's users read them."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from app.config.section import Section, as_section


def test_keys_are_attributes_at_every_depth() -> None:
    section = as_section({"a": {"b": [{"c": 1}]}})

    assert section.a.b[0].c == 1
    section.a.d = 2
    del section.a.b
    assert section == {"a": {"d": 2}}


def test_missing_key_is_an_attribute_error() -> None:
    section = as_section({})

    with pytest.raises(AttributeError):
        _ = section.nothing
    with pytest.raises(AttributeError):
        del section.nothing
    assert not hasattr(section, "nothing")


def test_it_stays_a_dict_for_everyone_else() -> None:
    section = as_section({"a": {"b": 1}})

    assert json.loads(json.dumps(section)) == {"a": {"b": 1}}
    for copied in (copy.deepcopy(section), pickle.loads(pickle.dumps(section))):
        assert copied == section
        assert isinstance(copied.a, Section)
