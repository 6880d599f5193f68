"""The quirks of upstream's YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config import upstream
from app.config.problems import Problems
from app.config.schema.model import PatchSize
from app.config.sections.diffusion import read_loss
from app.config.sections.parse import parse_network, parse_sampler, parse_section
from app.errors import ConfigErrors
from app.registry import TARGETS
from tests.support.configs import TINY, base, layer, load, mistakes, section

NETWORK = "model.network_config"


def network_node(name: str = "cogvideox_2b") -> dict[str, Any]:
    node: dict[str, Any] = section(name, "model")["network_config"]
    return node


@pytest.mark.parametrize(
    ("written", "patch"),
    [
        (2, (1, 2, 2)),
        (2.0, (1, 2, 2)),
        ([2, 2, 2], (2, 2, 2)),
        ([1, 2.0, 4], (1, 2, 4)),
    ],
)
def test_patch_size_as_number_or_list(written: object, patch: tuple[int, int, int]) -> None:
    frames, rows, columns = patch

    converted = upstream.patch_size_kind().convert(written)

    assert converted == PatchSize(frames=frames, rows=rows, columns=columns)


@pytest.mark.parametrize("written", [0, -1, [2, 2], [1, 2, 0], "2", 1.5, [1, 2.5, 2], True, None])
def test_other_patch_sizes_are_mistakes(written: object) -> None:
    with pytest.raises(ValueError):
        upstream.patch_size_kind().convert(written)


def test_interpolation_may_stand_in_either_place_and_the_inner_wins() -> None:
    node = network_node()
    position = node["params"]["modules"]["pos_embed_config"]["params"]
    inner = {key: position.pop(key) for key in ("height_interpolation", "width_interpolation")}

    node["params"] |= inner
    outside = parse_network(node, NETWORK, TARGETS).params.position
    position["height_interpolation"] = 3.0
    both = parse_network(node, NETWORK, TARGETS).params.position

    assert (outside.height_interpolation, outside.width_interpolation) == (1.875, 1.875)
    assert (both.height_interpolation, both.width_interpolation) == (3.0, 1.875)


def test_schedules_that_disagree_are_named_with_their_values() -> None:
    path = "model.sampler_config.params.discretization_config.params.shift_scale"

    found = mistakes(*base("cogvideox_5b", "sft"), f"{path}=3.0")

    assert len(found) == 1
    assert "differ in 'shift_scale'" in found[0]
    assert f"{path} = 3.0" in found[0]


def test_each_dead_key_gives_one_warning() -> None:
    config = load(*base("cogvideox1.5_5b_i2v", "sft"))

    dead = [line for line in config.warnings if "has no effect" in line]
    assert len(dead) == len(set(dead))
    for key in ("augmentation_dropout", "adm_in_channels", "vocab_size", "loss_scale_window"):
        assert len([line for line in dead if f"'{key}'" in line]) == 1, key


def test_integral_floats_and_numbers_in_quotes_are_numbers(tmp_path: Path) -> None:
    extra = layer(
        tmp_path,
        'deepspeed:\n  optimizer:\n    params: {eps: "1e-9", lr: "1e-5"}\n'
        "data:\n  params: {num_frames: 9., skip_frms_num: 3.}\n",
    )

    config = load(*TINY, extra)

    assert config.training is not None
    assert config.data is not None
    assert (config.training.optimizer.eps, config.training.optimizer.lr) == (1e-9, 1e-5)
    assert getattr(config.data.params, "num_frames") == 9  # noqa: B009


@pytest.mark.parametrize(
    ("kind", "params", "ours"),
    [
        ("sat.ops.FusedEmaAdam", {}, "ema_adamw"),
        ("AdamW", {}, "adamw"),
        ("Adam", {}, "adamw"),
        ("Adam", {"adam_w_mode": False}, "adam"),
        ("Adafactor", {}, None),
    ],
)
def test_optimizers_by_deepspeeds_names(
    kind: str, params: dict[str, object], ours: str | None
) -> None:
    assert upstream.optimizer_kind(kind, params) == ours


@pytest.mark.parametrize(
    ("text", "is_placeholder"),
    [
        ("{your CogVideoX SAT folder}/transformer", True),
        ("{your_CogVideoX-5b-sat_path}/vae/3d-vae.pt", True),
        ("s3://bucket/{000..123}.tar", False),
        ("s3://bucket/{a,b}.tar", False),
        ("plain/path", False),
    ],
)
def test_placeholders_are_told_from_brace_ranges(text: str, is_placeholder: bool) -> None:
    found = list(upstream.placeholders({"a": [{"b": text}]}))

    assert found == ([("a.0.b", text)] if is_placeholder else [])


def test_schemes_of_upstreams_shards() -> None:
    problems = Problems()

    found = upstream.storage_urls(
        ("boto3://b/x.tar", "metaboto3://b/y.tar", "s3://b/z", "dir"), "args.train_data", problems
    )
    upstream.storage_urls(("hf://a/b", "pipe:cat x", "rclone://r:b/x.tar"), "args.x", problems)

    assert found == ("s3://b/x.tar", "s3://b/y.tar", "s3://b/z", "dir")
    assert [error.what.split("'")[1] for error in problems.errors] == [
        "hf://a/b",
        "pipe:cat x",
        "rclone://r:b/x.tar",
    ]


@pytest.mark.parametrize(
    ("split", "valid", "says"),
    [
        ("1,0,0", None, None),
        ("900,100,0", ["dir"], None),
        ("1", None, None),
        ("900,100,0", None, None),
        ("900,-100,0", None, "'split' is '900,-100,0'"),
        ("0,1,0", None, "'split' is '0,1,0'"),
        ("a,b", ["dir"], "'split' is 'a,b'"),
        ("0,0,0", ["dir"], "'split' is '0,0,0'"),
    ],
)
def test_split(split: str, valid: list[str] | None, says: str | None) -> None:
    problems = Problems()

    upstream.check_split({"split": split, "valid_data": valid}, problems)

    assert [says in error.what for error in problems.errors if says] == ([True] if says else [])
    assert len(problems.errors) == (1 if says else 0)


def test_iterable_dataset_is_decided_by_the_dataset() -> None:
    shards = load(*TINY, "--iterable-dataset")
    folder = load(*base("tiny/tiny", "tiny/tiny_sft"), "--iterable-dataset")

    assert not any("iterable_dataset" in line for line in shards.warnings)
    assert any("reads files, not shards" in line for line in folder.warnings)
    assert "ready batches" in mistakes(*TINY, "--iterable-dataset", "custom")[0]


def test_quantised_noise_levels_cannot_be_asked_for() -> None:
    found = mistakes(*TINY, "model.denoiser_config.params.quantize_c_noise=true")

    assert "false (c_noise is the timestep already)" in found[0]


def test_wrong_loss_and_sampler_values_are_reported_with_the_given_path() -> None:
    model = section("cogvideox_5b", "model")
    model["loss_fn_config"]["params"]["type"] = "lpips"
    model["sampler_config"]["params"]["guider_config"]["params"]["exp"] = 2.5

    with pytest.raises(ConfigErrors, match="'type' is 'lpips'"):
        parse_section(read_loss, model["loss_fn_config"], "here.loss", TARGETS)
    with pytest.raises(ConfigErrors) as caught:
        parse_sampler(model["sampler_config"], "here.sampler", TARGETS)
    assert caught.value.errors[0].where == "here.sampler.params.guider_config.params.exp"
