"""Sizes, counts and prompts of a sampling call, from its options and its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.runnable import samplable_run
from app.config.schema.run import SamplableRun
from app.errors import CogvxError, ConfigError, DataError, InputMissingError, UsageError
from app.evaluation.prompts import Prompt
from app.run.sample.request import OwnOptions, VideoSize, prompts_of, request_of
from tests.support.configs import base, load

# 4 x 8 latents at a stride of 8 make 32 x 64 pixels; 9 frames at 4 per latent are 3 latents.
SAMPLING = (*base("tiny/tiny"), "args.mode=inference", "args.load=weights")


def config(*words: str) -> SamplableRun:
    return samplable_run(load(*SAMPLING, *words), has_run=False)


def test_a_model_alone_gives_its_own_size_and_one_sample_of_each_prompt() -> None:
    request = request_of(config(), OwnOptions())

    assert request.size == VideoSize(latent_frames=3, rows=32, columns=64)
    assert request.size.short_side == 32
    assert request.per_prompt == 1
    assert (request.decodes, request.keeps_latents, request.with_images) == (True, False, False)


def test_the_configuration_wins_over_the_model_and_options_win_over_both() -> None:
    made = config(
        "args.sampling_image_size=[48,80]",
        "args.sampling_num_frames=5",
        "args.batch_size=3",
        "args.only_save_latents=true",
    )

    by_configuration = request_of(made, OwnOptions())
    by_options = request_of(made, OwnOptions(size=" 16 x 96 ", num_frames=29, overwrite=True))

    assert by_configuration.size == VideoSize(5, 48, 80)
    assert by_configuration.per_prompt == 3
    assert (by_configuration.decodes, by_configuration.keeps_latents) == (False, True)
    assert by_options.size == VideoSize(8, 16, 96)
    assert by_options.overwrite


@pytest.mark.parametrize(
    ("own", "error", "says", "fix"),
    [
        (OwnOptions(size="big"), UsageError, "--size 'big' is not two numbers", "480x720"),
        (OwnOptions(size="40x64"), ConfigError, "40 rows of pixels", "use 32"),
        (OwnOptions(size="32x72"), ConfigError, "72 columns of pixels", "use 64"),
        (OwnOptions(size="0x64"), ConfigError, "0 rows of pixels", "use 16"),
        (OwnOptions(num_frames=12), ConfigError, "12 frames are not 4k \\+ 1", "use 9 or 13"),
        (OwnOptions(num_frames=0), ConfigError, "0 frames are not 4k \\+ 1", "use 1 or 5"),
        (OwnOptions(step=3), UsageError, "no run is given", "--run URL"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_could(
    own: OwnOptions, error: type[CogvxError], says: str, fix: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        request_of(config(), own)

    assert fix in caught.value.fix


def test_images_need_a_network_that_takes_them() -> None:
    with pytest.raises(ConfigError, match="the network takes no image"):
        request_of(config("args.image2video=true"), OwnOptions())


def test_the_latent_count_of_1_5_is_given_with_its_padding() -> None:
    words = (*base("cogvideox1.5_5b"), "args.mode=inference", "args.load=weights")
    for given, expected in ((22, 21), (21, 21), (42, 41)):
        read = load(*words, f"args.sampling_num_frames={given}")
        assert read.model is not None
        size = request_of(read, OwnOptions()).size  # type: ignore[arg-type]
        assert size.latent_frames == expected
    # 300 x 300 latents of the position table are more than the model is made for.
    assert (size.rows, size.columns) == (768, 1360)


def test_prompts_come_from_options_then_lines_then_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("a cat\n\na d\u2028og\n".encode())
    from_file = config(f"args.input_file={file}", "args.input_type=txt")
    typed = config("args.input_type=cli")

    options = prompts_of(from_file, OwnOptions(prompt=[" a fox "]), [], with_images=False)
    lines = prompts_of(typed, OwnOptions(), iter(["a hen"]), with_images=False)
    found = prompts_of(from_file, OwnOptions(), [], with_images=False)

    assert options == [Prompt(0, "a fox")]
    assert list(lines) == [Prompt(0, "a hen")]
    assert found == [Prompt(0, "a cat"), Prompt(2, "a d\u2028og")]  # only line feeds end a line


def test_an_image_goes_with_every_prompt_of_the_command_line() -> None:
    own = OwnOptions(prompt=["a cat", "a dog"], image="a.png")

    found = prompts_of(config(), own, [], with_images=True)

    assert found == [Prompt(0, "a cat", "a.png"), Prompt(1, "a dog", "a.png")]
    with pytest.raises(UsageError, match="makes videos from text alone"):
        prompts_of(config(), own, [], with_images=False)
    with pytest.raises(UsageError, match="--image needs --prompt"):
        prompts_of(config(), OwnOptions(image="a.png"), [], with_images=True)


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, InputMissingError), (b"\n \n", InputMissingError), (b"caf\xe9", DataError)],
)
def test_a_file_without_prompts_is_an_error(
    tmp_path: Path, content: bytes | None, error: type[CogvxError]
) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)

    from_file = config(f"args.input_file={file}", "args.input_type=txt")

    with pytest.raises(error) as caught:
        prompts_of(from_file, OwnOptions(), [], with_images=False)

    assert str(file) in caught.value.where
