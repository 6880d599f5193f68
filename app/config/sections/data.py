"""Section `data:`: the dataset class, its parameters, and our order and cache."""

from __future__ import annotations

from typing import Any

from app.config import upstream
from app.config.kinds import choice, integer, optional, real, sequence, text
from app.config.reader import Context, Field, Reader, open_part
from app.config.schema.data import (
    Bucket,
    DataConfig,
    OrderConfig,
    QuarantineConfig,
    SFTDataConfig,
    ShardDataConfig,
    check_frame_count,
    parse_bucket,
)
from app.errors import ConfigError

SFT = (
    Field("video_size", sequence(integer(8), length=2)),
    Field("fps", real(above=0)),
    Field("max_num_frames", integer(1)),
    Field("skip_frms_num", real(0), 3.0),
)
SHARDS = (
    Field("image_size", sequence(integer(8), length=2)),
    Field("num_frames", integer(1)),
    Field("fps", real(above=0)),
    Field("skip_frms_num", real(0), 0.0),
    Field("nshards", optional(integer(1)), None),
    Field("seed", integer(-1), 1),
    Field("meta_names", optional(sequence(text(), single=True)), ()),
    Field("shuffle_buffer", integer(1), 1000),
    Field("include_dirs", optional(text()), None),
    Field("txt_key", text(), "caption"),
)
ORDER = (Field("lanes", integer(1), 16), Field("window", integer(1), 256))
QUARANTINE = (
    Field("max_share", real(0, 1), 0.01),
    Field("after_samples", integer(0), 1000),
    Field("first_samples", integer(1), 20),
)
CACHE = (
    Field("cache_dir", optional(text()), None),
    Field("cache_gib", real(above=0), 20.0),
    Field("prefetch_gib", real(above=0), 4.0),
    Field("prefetch_s", real(above=0), 120.0),
    Field("missing_captions", choice("error", "empty"), "error"),
    Field("temporal_crop", choice("start", "random"), "start"),
    Field("on_changed_shard", choice("error", "rescan"), "error"),
    Field("decode_deadline_s", real(above=0), 5.0),
    Field("decode_memory_gib", real(0.5), 3.0),
    Field("bucket_batch", choice("fixed", "cost"), "fixed"),
)
PARAMS: dict[type, tuple[Field, ...]] = {SFTDataConfig: SFT, ShardDataConfig: SHARDS}


def read_data(node: object, where: str, context: Context) -> DataConfig | None:
    """Section `data:`; `args` adds the paths and loader settings (app.config.assembly)."""
    problems = context.problems
    part = open_part(node, where, "data", context)
    if part is None:
        return None
    assert part.target.implementation is not None
    before = len(problems.errors)
    values: dict[str, Any] = part.node.fields(CACHE)
    values["order"] = _order(part.node, context)
    values["quarantine"] = _quarantine(part.node, context)
    values["buckets"] = _buckets(part.node)
    part.node.close()
    if part.registered:
        values["params"] = dict(part.params.values)
    else:
        upstream.rename_sizes(part.params, {field.key for field in PARAMS[part.target.params]})
        found = part.params.fields(PARAMS[part.target.params])
        if found.get("meta_names", ()) is None:
            found["meta_names"] = ()
        if "seed" in part.params.values:
            problems.warn(
                "'seed' has no effect: args.seed keys the order of samples",
                where=part.params.path("seed"),
            )
        part.params.close()
        _check_frames(found, part.params)
        if len(problems.errors) == before:
            values["params"] = problems.build(part.target.params, found)
    if len(problems.errors) > before:
        return None
    values |= {"target": part.name, "implementation": part.target.implementation}
    return problems.build(DataConfig, values)


def _check_frames(found: dict[str, Any], params: Reader) -> None:
    """The schema class checks this too, but only when everything else is right."""
    for name in ("num_frames", "max_num_frames"):
        if found.get(name) is not None:
            try:
                check_frame_count(found[name], where=params.path(name))
            except ConfigError as error:
                params.problems.add(error.what, where=error.where, fix=error.fix)


def _order(reader: Reader, context: Context) -> OrderConfig | None:
    child = reader.child("order")
    if child is None:
        return OrderConfig()
    values = child.fields(ORDER)
    child.close()
    return context.problems.build(OrderConfig, values)


def _quarantine(reader: Reader, context: Context) -> QuarantineConfig | None:
    child = reader.child("quarantine")
    if child is None:
        return QuarantineConfig()
    values = child.fields(QUARANTINE)
    child.close()
    return context.problems.build(QuarantineConfig, values)


def _buckets(reader: Reader) -> tuple[Bucket, ...]:
    """`buckets`: a list of FRAMESxROWSxCOLUMNS, or of three numbers each."""
    if not reader.has("buckets") or reader.values["buckets"] is None:
        return ()
    given, where = reader.values["buckets"], reader.path("buckets")
    found: list[Bucket] = []
    for entry in given if isinstance(given, list | tuple) else [given]:
        try:
            found.append(parse_bucket(entry, where))
        except ConfigError as error:
            reader.problems.add(error.what, where=where, fix=error.fix)
    if len(set(found)) < len(found):
        reader.problems.add("a bucket is named twice", where=where, fix="name each size once")
    return tuple(found)
