"""The autoencoder against recorded tensors, and its export against recorded diffusers runs.

Recorded tensors are (B, C, T, H, W). Cases made by the 1.0 code treat the first frame alone when
the number of frames is odd; at every level anew in the encoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.errors import ShapeError
from app.models.vae.autoencoder import VideoAutoencoder
from app.models.vae.blocks import Downsample
from app.models.vae.decoder import DecoderPast
from tests.parity.golden import DEFAULT_FOLDER, Case, cases, folder, name_of, placed

ITEMS = ("09",)  # and the VAE cases of item 14, whose other cases have a runner elsewhere

VAE_EXPORTS = [case for case in cases("14") if "first_stage_config" in case.json]
SCALE_FACTORS = (0.7, 1.0, 1.15258426)
IGNORED_PARAMS = {
    *("double_z", "resolution", "attn_resolutions", "pad_mode"),
    *("dropout", "gather_norm"),
}


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_encode_equals_the_recorded_moments(case: Case) -> None:
    vae, video = vae_of(case), video_of(case)
    if is_made_by_first_release(case):
        split_first_frame_by_parity(vae.encoder)

    for frames, expected in by_count(case, "encode/", "/moments").items():
        moments = vae.encoder(video[:, :, :frames])
        case.assert_close(moments, expected, "moments", f"{frames} frames")


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_frame_counts_other_than_4k_plus_1_are_refused(case: Case) -> None:
    vae, video = vae_of(case), video_of(case).transpose(1, 2)
    counts = [int(key.split("_")[1]) for key in case.json["info"] if key.startswith("encode_")]

    for frames in [*(n for n in counts if n % 4 != 1), 3]:
        with pytest.raises(ShapeError, match=r"4k \+ 1"):
            vae.encode(video[:, :frames])


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_decode_equals_the_recorded_frames(case: Case) -> None:
    vae = vae_of(case)
    latents = vae.encode(video_of(case).transpose(1, 2)).mode()

    for count, expected in by_count(case, "decode_first_frame_rule/", "/x").items():
        check_tail(case, vae.decode(latents[:, :count], [count]), expected)
    for count, expected in by_count(case, "decode_wrapper_cp1/", "/x").items():
        # A single latent is one frame in either mode of upstream.
        check_tail(case, decode_chunk(vae, latents[:, :count], count == 1), expected)
    for count, expected in by_count(case, "decode/", "/x").items():
        check_tail(case, decode_chunk(vae, latents[:, :count], count % 2 == 1), expected)
    for name in ("decode_chunked_first_frame_rule/x", "decode_chunked_v10/x"):
        if case.has(name):
            check_tail(case, vae.decode(latents), case.tensor(name))


@pytest.mark.parametrize("case", [c for c in cases(*ITEMS) if c.has("latent_mode")], ids=name_of)
def test_posterior_equals_the_recorded_one(case: Case) -> None:
    posterior = vae_of(case).encode(video_of(case).transpose(1, 2))

    noise = placed(case.tensor("latent_sample_noise")).transpose(1, 2)
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).sum()

    check_tail(case, posterior.mode(), case.tensor("latent_mode"), "moments")
    check_tail(case, posterior.sample(noise), case.tensor("latent_sample"), "moments")
    expected_kl = case.tensor("kl_loss").item()
    assert kl.item() == pytest.approx(expected_kl, rel=case.tolerance("moments_abs"))


@pytest.mark.parametrize(
    "case", [c for c in cases(*ITEMS) if c.has("engine_decode_first_stage/z")], ids=name_of
)
def test_the_decode_of_upstreams_head_is_reproduced_by_plain_chunks(case: Case) -> None:
    vae = vae_of(case)
    z = case.tensor("engine_decode_first_stage/z").transpose(1, 2)[:, 1:]  # latent 0 is dropped
    mode = case.tensor("latent_mode").transpose(1, 2)
    ratio = ((z * mode).sum() / (mode * mode).sum()).item()
    scale_factor = min(SCALE_FACTORS, key=lambda stock: abs(stock - ratio))  # not recorded
    torch.testing.assert_close(z, scale_factor * mode)

    count = z.shape[1]
    num_pieces = min(10, count // 2)
    sizes = [count // num_pieces + (i < count % num_pieces) for i in range(num_pieces)]
    past: DecoderPast | None = None
    frames = []
    for piece in placed(z / scale_factor).transpose(1, 2).split(sizes, dim=2):
        done, past = vae.decoder(piece, past, is_first_chunk=False)
        frames.append(done)

    expected = case.tensor("engine_decode_first_stage/x")
    check_tail(case, torch.cat(frames, dim=2).transpose(1, 2), expected)


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_every_recorded_tensor_has_a_comparison_above(case: Case) -> None:
    compared = (
        r"x|encode/\d+/moments|latent_(mode|sample|sample_noise)|kl_loss|decode/\d+/x"
        r"|decode_(first_frame_rule|wrapper_cp1)/\d+/x|decode_chunked_(first_frame_rule|v10)/x"
        r"|engine_decode_first_stage/[xz]"
    )

    left = [name for name in case.names() if not re.fullmatch(compared, name)]

    assert left == []


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_keys_and_shapes_are_the_recorded_ones(case: Case) -> None:
    shapes = {key: list(tensor.shape) for key, tensor in vae_of(case).state_dict().items()}

    assert shapes == case.json.get("state_keys", shapes)
    assert case.json.get("n_params", count(shapes)) == count(shapes)


@pytest.mark.parametrize("case", VAE_EXPORTS, ids=name_of)
def test_export_cases_agree_with_ours_and_with_diffusers(case: Case) -> None:
    vae = vae_of(case)
    other = diffusers_twin(case, vae)

    with case, torch.no_grad():
        video = video_of(case)
        sat = case.tensor("sat_moments")
        latents = vae.encode(video.transpose(1, 2)).mode()
        case.assert_close(vae.encoder(video), sat, "moments", "whole clip")
        short = case.tensor("sat_moments9")
        frames = 4 * (short.shape[2] - 1) + 1
        case.assert_close(vae.encoder(video[:, :, :frames]), short, "moments", "short clip")
        case.assert_close(other._encode(video[:, :, :frames]), short, "moments", "diffusers")
        recorded = case.tensor("diffusers_moments")
        case.assert_close(other._encode(video), recorded, "moments", "diffusers whole")
        ours = vae.decode(latents).transpose(1, 2)
        theirs = other.decode(latents.transpose(1, 2)).sample
        head = case.tensor("sat_decode_chunked")
        case.assert_close(ours[:, :, : head.shape[2]], head, "decode", "chunked")
        head = case.tensor("diffusers_decode_first_frame")
        case.assert_close(theirs[:, :, : head.shape[2]], head, "decode", "diffusers")
        case.assert_close(ours, theirs, "decode", "ours against diffusers")


# what a case says


def vae_of(case: Case) -> VideoAutoencoder:
    """Our autoencoder with the sizes and weights of the case."""
    params = case.json["first_stage_config"]["params"]
    encoder, decoder = (
        part_of(params[f"{part}_config"]["params"]) for part in ("encoder", "decoder")
    )
    vae = VideoAutoencoder(VAEConfig(encoder=encoder, decoder=decoder)).eval().requires_grad_(False)
    shapes = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
    vae.load_state_dict(case.weights(shapes))
    return placed(vae)


def part_of(params: dict[str, object]) -> VAEPartConfig:
    kept = {key: value for key, value in params.items() if key not in IGNORED_PARAMS}
    kept["ch_mult"] = tuple(kept["ch_mult"])  # type: ignore[arg-type]
    return VAEPartConfig(**kept)  # type: ignore[arg-type]


def video_of(case: Case) -> Tensor:
    """The input (B, 3, T, H, W): stored here, or in the VAE case with this salt or of this name."""
    if case.has("x"):
        return placed(case.tensor("x"))
    note = f"{case.json.get('note', '')} {case.json['what']}"
    for place in (folder(), DEFAULT_FOLDER):
        inputs = [
            c for c in map(Case, sorted(Path(place).glob("*.json"))) if c.item.startswith(ITEMS)
        ]
        inputs = [c for c in inputs if c.has("x")]
        same_salt = [c for c in inputs if c.json["weights_salt"] == case.json["weights_salt"]]
        named = [c for c in inputs if c.path.stem in note]
        for found in (*same_salt, *named, *inputs):
            return placed(found.tensor("x"))
    raise AssertionError(f"no case holds the input x of {case.path.name}")


def is_made_by_first_release(case: Case) -> bool:
    return "1.0 code" in case.json["what"]


def by_count(case: Case, prefix: str, suffix: str) -> dict[int, Tensor]:
    """Tensors named <prefix><count><suffix>, by count."""
    return {
        int(name.removeprefix(prefix).removesuffix(suffix)): case.tensor(name)
        for name in case.names(prefix)
    }


def split_first_frame_by_parity(encoder: nn.Module) -> None:
    """Make every step down of the encoder decide by its own number of frames."""

    def decide(
        module: nn.Module, args: tuple[Tensor], kwargs: dict[str, bool]
    ) -> tuple[tuple[Tensor], dict[str, bool]]:
        return args, {"is_first_chunk": args[0].shape[2] % 2 == 1}

    for module in encoder.modules():
        if isinstance(module, Downsample):
            module.register_forward_pre_hook(decide, with_kwargs=True)


def decode_chunk(vae: VideoAutoencoder, latents: Tensor, is_first_chunk: bool) -> Tensor:
    frames, _ = vae.decoder(latents.transpose(1, 2), None, is_first_chunk=is_first_chunk)
    return frames.transpose(1, 2)


def check_tail(
    case: Case, actual: Tensor, expected: Tensor, quantity: str = "reconstruction"
) -> None:
    """Compare ours (B, T, C, H, W) with the recorded last frames (B, C, n, H, W)."""
    case.assert_close(actual.transpose(1, 2)[:, :, -expected.shape[2] :], expected, quantity)


def count(shapes: dict[str, list[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def diffusers_twin(case: Case, vae: VideoAutoencoder) -> Any:
    """The real diffusers module with our weights under the recorded names."""
    from diffusers import AutoencoderKLCogVideoX  # not needed by what tests/gpu runs

    part = vae.config.encoder
    levels = len(part.ch_mult)
    other = AutoencoderKLCogVideoX(
        in_channels=part.in_channels,
        out_channels=part.out_ch,
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=tuple(part.ch * factor for factor in part.ch_mult),
        latent_channels=part.z_channels,
        layers_per_block=part.num_res_blocks,
        temporal_compression_ratio=part.temporal_compress_times,
    )
    ours = vae.state_dict()
    names = {key: row["source"] for key, row in case.json["diffusers_keys"].items()}
    other.load_state_dict({key: ours[name] for key, name in names.items()})
    return other.eval()
