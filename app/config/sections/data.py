"""Section `data:`: the dataset class, its parameters, and our order and cache."""

from __future__ import annotations

from typing import Any

from app.config import upstream
from app.config.kinds import choice, integer, optional, real, sequence, text
from app.config.problems import Problems
from app.config.reader import Context, Field, Reader, open_part, rows
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

SFT = rows(
    SFTDataConfig,
    Field("video_size", sequence(integer(8), length=2)),
    Field("fps", real(above=0)),
    Field("max_num_frames", integer(1)),
    Field("skip_frms_num", real(0)),
)
SHARDS = rows(
    ShardDataConfig,
    Field("image_size", sequence(integer(8), length=2)),
    Field("num_frames", integer(1)),
    Field("fps", real(above=0)),
    Field("skip_frms_num", real(0)),
    Field("nshards", optional(integer(1))),
    Field("seed", integer(-1)),
    Field("meta_names", optional(sequence(text(), single=True))),
    Field("shuffle_buffer", integer(1)),
    Field("include_dirs", optional(text())),
    Field("txt_key", text()),
)
ORDER = rows(OrderConfig, Field("lanes", integer(1)), Field("window", integer(1)))
QUARANTINE = rows(
    QuarantineConfig,
    Field("max_share", real(0, 1)),
    Field("after_samples", integer(0)),
    Field("first_samples", integer(1)),
)
CACHE = rows(
    DataConfig,
    Field("cache_dir", optional(text())),
    Field("cache_gib", real(above=0)),
    Field("prefetch_gib", real(above=0)),
    Field("prefetch_s", real(above=0)),
    Field("missing_captions", choice("error", "empty")),
    Field("caption_prefix", text()),
    Field("temporal_crop", choice("start", "random")),
    Field("on_changed_shard", choice("error", "rescan")),
    Field("decode_deadline_s", real(above=0)),
    Field("decode_memory_gib", real(0.5)),
    Field("bucket_batch", choice("fixed", "cost")),
)
PARAMS: dict[type, tuple[Field, ...]] = {SFTDataConfig: SFT, ShardDataConfig: SHARDS}


def read_data(node: object, where: str, context: Context) -> DataConfig | None:
    """Section `data:`; `args` adds the paths and loader settings (app.config.assembly)."""
    problems = context.problems
    part = open_part(node, where, "dataset", context)
    if part is None:
        return None
    before = problems.count
    values: dict[str, Any] = part.node.fields(CACHE)
    values["order"] = _section(part.node, "order", OrderConfig, ORDER)
    values["quarantine"] = _section(part.node, "quarantine", QuarantineConfig, QUARANTINE)
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
        if problems.count == before:
            values["params"] = problems.build(part.target.params, found)
    if problems.count > before:
        return None
    values |= {"target": part.name, "implementation": part.target.implementation}
    return problems.build(DataConfig, values)


def cache_keys(section: object) -> dict[str, Any]:
    """The keys beside `target` and `params` of a plain section `data`, with their defaults.

    Raises:
        ConfigErrors: a wrong value. Unknown keys are left alone.
    """
    problems = Problems()
    found = Reader(section, "data", problems).fields(CACHE)
    problems.raise_errors()
    return found


def _check_frames(found: dict[str, Any], params: Reader) -> None:
    """The schema class checks this too, but only when everything else is right."""
    for name in ("num_frames", "max_num_frames"):
        if found.get(name) is not None:
            try:
                check_frame_count(found[name], where=params.path(name))
            except ConfigError as error:
                params.problems.add(error.what, where=error.where, fix=error.fix)


def _section(reader: Reader, key: str, schema: type, table: tuple[Field, ...]) -> Any:
    child = reader.child(key)
    if child is None:
        return schema()
    values = child.fields(table)
    child.close()
    return reader.problems.build(schema, values)


def _buckets(reader: Reader) -> tuple[Bucket, ...]:
    """`buckets`: a list of FRAMESxROWSxCOLUMNS, or of three numbers each."""
    given, where = reader.raw("buckets"), reader.path("buckets")
    if given is None:
        return ()
    found: list[Bucket] = []
    for entry in given if isinstance(given, list | tuple) else [given]:
        try:
            found.append(parse_bucket(entry, where))
        except ConfigError as error:
            reader.problems.add(error.what, where=where, fix=error.fix)
    if len(set(found)) < len(found):
        reader.problems.add("a bucket is named twice", where=where, fix="name each size once")
    return tuple(found)
