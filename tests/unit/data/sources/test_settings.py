"""Settings of the sources are the same from the configuration and from upstream's Namespace."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest

from app.data.sources.settings import (
    SourceSettings,
    settings_from_args,
    settings_from_config,
    with_cache,
)
from app.errors import ConfigErrors
from app.run.arguments import parse_args
from tests.support.configs import TINY

GIB = 1 << 30


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def plain(settings: SourceSettings) -> dict[str, object]:
    """Every field, the objects by what they were made with."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    assert settings.cache is not None
    limits = settings.decoders._limits
    return values | {"cache": settings.cache.limit_bytes, "prefetcher": None, "decoders": limits}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--compat", "sat"),
        ("--frame-rule", "sat", "--seed", "9"),
        ("data.missing_captions=empty", "data.temporal_crop=random", "data.cache_gib=0.5"),
        ("data.caption_prefix=sks", "data.order.lanes=4"),
        ("data.decode_deadline_s=7", "data.decode_memory_gib=2", "data.on_changed_shard=rescan"),
    ],
)
def test_both_roads_lead_to_the_same_settings(words: tuple[str, ...]) -> None:
    args = parse_args([*TINY, *words])
    config = args.run_config

    by_config = settings_from_config(config.data, config.compat, config.training.seed)
    by_config = with_cache(by_config, config.data.cache_gib, config.data.prefetch_gib)

    assert plain(settings_from_args(args)) == plain(by_config)


def test_a_bare_namespace_has_the_defaults() -> None:
    settings = settings_from_args(Namespace())

    assert (settings.frame_rule, settings.missing_captions) == ("exact", "error")
    assert (settings.temporal_crop, settings.seed) == ("start", 0)
    assert settings.cache is not None
    assert settings.cache.limit_bytes == 20 * GIB


def test_a_wrong_value_in_the_section_is_named() -> None:
    with pytest.raises(ConfigErrors) as caught:
        settings_from_args(Namespace(data_config={"cache_gib": "much"}))

    assert caught.value.errors[0].where == "data.cache_gib"
