"""Sections `data:` and `deepspeed:`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config.schema.data import (
    Bucket,
    OrderConfig,
    QuarantineConfig,
    SFTDataConfig,
    ShardDataConfig,
)
from app.config.sections.deepspeed import TOP_KEYS, ZERO_KEYS
from tests.support.configs import TINY, base, layer, load, mistakes

MODEL = base("tiny/tiny")


def test_shards() -> None:
    data = load(*TINY, "--num-workers", "3", "args.train_data=[s3://b/x, y]").data

    assert data is not None
    assert data.params == ShardDataConfig(
        image_size=(32, 64), num_frames=9, fps=8.0, meta_names=("duration", "fps", "caption")
    )
    assert data.implementation == "app.data.sources.webdataset:ShardSource"
    assert (data.train, data.valid) == (("s3://b/x", "y"), ("tiny/shards/valid",))
    assert (data.num_workers, data.prefetch_factor) == (3, 2)
    assert data.order == OrderConfig()


def test_folder() -> None:
    data = load(*base("tiny/tiny", "tiny/tiny_sft")).data

    assert data is not None
    assert data.params == SFTDataConfig(
        video_size=(32, 64), fps=8.0, max_num_frames=9, skip_frms_num=0.0
    )


def test_our_keys_beside_target() -> None:
    data = load(
        *TINY, "data.order={lanes: 4, window: 8}", "data.cache_dir=/c", "data.cache_gib=1.5"
    ).data

    assert data is not None
    assert data.order == OrderConfig(lanes=4, window=8)
    assert (data.cache_dir, data.cache_gib) == ("/c", 1.5)


def test_buckets_and_how_their_batches_are_counted() -> None:
    data = load(*TINY, "data.buckets=[9x32x64, 9x64x32]", "data.bucket_batch=cost").data
    plain = load(*TINY).data

    assert data is not None
    assert plain is not None
    assert (data.buckets, data.bucket_batch) == (
        (Bucket(9, 32, 64), Bucket(9, 64, 32)),
        "cost",
    )
    assert (plain.buckets, plain.bucket_batch) == ((), "fixed")
    assert len(mistakes(*TINY, "data.bucket_batch=time")) == 1


def test_what_a_run_bears_of_bad_clips() -> None:
    data = load(
        *TINY,
        "data.quarantine={max_share: 0.05, after_samples: 10, first_samples: 3}",
        "data.decode_deadline_s=2",
        "data.decode_memory_gib=1.5",
    ).data
    plain = load(*TINY).data

    assert data is not None
    assert plain is not None
    assert data.quarantine == QuarantineConfig(max_share=0.05, after_samples=10, first_samples=3)
    assert (data.decode_deadline_s, data.decode_memory_gib) == (2.0, 1.5)
    assert plain.quarantine == QuarantineConfig(
        max_share=0.01, after_samples=1000, first_samples=20
    )
    assert (plain.decode_deadline_s, plain.decode_memory_gib) == (5.0, 3.0)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("data.params.num_frames=10", "num_frames is 10, which is not 4k + 1"),
        ("data.params.fps=0", "'fps' is 0"),
        ("data.params.image_size=[32,48,3]", "'image_size' is [32, 48, 3]"),
        ("data.params.skip_frms_num=-1", "'skip_frms_num' is -1"),
        ("data.params.max_num_frame=9", "unknown key 'max_num_frame'"),
        ("data.quarantine.max_share=1.5", "max_share"),
        ("data.quarantine.first_samples=0", "first_samples"),
        ("data.decode_deadline_s=0", "decode_deadline_s"),
        ("data.order.lanes=0", "'lanes' is 0"),
        ("data.orders=3", "unknown key 'orders'"),
        ("args.num_workers=-1", "'num_workers' is -1"),
        ("args.train_data=[hf://a/b]", "'hf://a/b' cannot be read"),
    ],
)
def test_mistakes_in_data(override: str, what: str) -> None:
    found = mistakes(*TINY, override)

    assert len(found) == 1, found
    assert what in found[0]


def test_frame_count_fix_is_the_nearest_valid_one() -> None:
    assert "use 9" in mistakes(*TINY, "data.params.num_frames=10")[0]


def test_recipe_for_a_folder_works_for_shards_by_changing_the_target() -> None:
    data = load(*base("cogvideox_2b", "sft"), "data.target=data_video.VideoDataset").data

    assert data is not None
    assert data.params == ShardDataConfig(
        image_size=(480, 720), num_frames=49, fps=8.0, skip_frms_num=3.0
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_default_section_by_zero_stage(stage: int) -> None:
    config = load(*MODEL, "--zero-stage", str(stage), "--bf16", "--lr", "3e-5")

    training = config.training
    assert training is not None
    section: Any = training.deepspeed
    assert training.zero_stage == stage
    assert section.get("zero_optimization", {}).get("stage", 0) == stage
    assert section["train_micro_batch_size_per_gpu"] == 4
    assert section["gradient_accumulation_steps"] == 1
    assert section["gradient_clipping"] == training.gradient_clipping == 0.1
    assert section["bf16"] == {"enabled": True}
    assert section["fp16"] == {"enabled": False}
    assert section["optimizer"]["params"]["lr"] == training.optimizer.lr == 3e-5
    assert training.optimizer.kind == "adamw"
    assert training.optimizer.betas == ((0.9, 0.999) if stage == 0 else (0.9, 0.95))


def test_zero_stage_flag_wins_over_the_section() -> None:
    config = load(*TINY, "--zero-stage", "1")
    upstream = load(*TINY, "--zero-stage", "1", "--compat", "sat")

    assert config.training is not None
    assert upstream.training is not None
    assert (config.training.zero_stage, upstream.training.zero_stage) == (1, 2)
    assert upstream.arguments["zero_stage"] == 1


def test_deepspeed_config_file_overrides_the_section(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"gradient_clipping": 0.7, "train_micro_batch_size_per_gpu": 1}')

    config = load(*TINY, "--deepspeed_config", str(path))

    assert config.training is not None
    assert config.training.gradient_clipping == 0.7
    assert config.training.micro_batch == 1
    assert config.origins["deepspeed.gradient_clipping"] == str(path)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("deepspeed.gradient_cliping=1", "did you mean 'gradient_clipping'"),
        ("deepspeed.zero_optimization.stag=1", "did you mean 'stage'"),
        ("deepspeed.zero_optimization.stage=4", "'stage' is 4"),
        ("deepspeed.bf16.enabled=perhaps", "'enabled' is 'perhaps'"),
        ("deepspeed.bf16.enable=true", "unknown key 'enable'"),
        ("deepspeed.optimizer.type=Adafactor", "unknown optimizer 'Adafactor'"),
        ("deepspeed.optimizer.params.beta=[0.9,0.95]", "unknown key 'beta'"),
        ("deepspeed.optimizer.params.betas=[0.9]", "'betas' is [0.9]"),
        ("deepspeed.optimizer.params.lr=fast", "'lr' is 'fast'"),
        ("deepspeed.optimizer.params.bias_correction=false", "must stay on"),
        ("deepspeed.train_micro_batch_size_per_gpu=auto", "is 'auto'"),
        ("deepspeed.scheduler={type: WarmupLR}", "schedulers are not used"),
    ],
)
def test_mistakes_in_deepspeed(override: str, what: str) -> None:
    found = mistakes(*TINY, override)

    assert len(found) == 1, found
    assert what in found[0]


def test_ema_decay_belongs_to_the_optimizer_that_keeps_one() -> None:
    kept = load(*TINY, "deepspeed.optimizer.params.ema_decay=0.99").training
    plain = load(*TINY, "deepspeed.optimizer.type=AdamW").training

    assert kept is not None
    assert plain is not None
    assert kept.optimizer.ema_decay == 0.99
    assert (plain.optimizer.kind, plain.optimizer.ema_decay) == ("adamw", None)
    assert (
        "keeps no moving average"
        in mistakes(
            *TINY, "deepspeed.optimizer.type=AdamW", "deepspeed.optimizer.params.ema_decay=0.99"
        )[0]
    )


def test_total_batch_size_is_computed_and_never_passed_on(tmp_path: Path) -> None:
    config = load(*TINY, layer(tmp_path, {"deepspeed": {"train_batch_size": 64}}))

    assert config.training is not None
    assert "train_batch_size" not in config.training.deepspeed
    assert any("'train_batch_size' has no effect" in line for line in config.warnings)


def test_key_lists_hold_what_deepspeed_itself_declares() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    declared = set(DeepSpeedZeroConfig.model_fields)
    aliases = {field.alias for field in DeepSpeedZeroConfig.model_fields.values() if field.alias}

    assert declared - {"save_muon_momentum_buffer_in_memory"} <= ZERO_KEYS
    assert aliases <= ZERO_KEYS
    assert {"fp16", "bf16", "zero_optimization", "gradient_clipping"} <= TOP_KEYS
