"""Recorded cases of forms that tests/golden has no example of, made by plain arithmetic.

The network and the VAE are the real ones with formula weights (their numbers have recordings of
their own); every number around them is computed here from the tables of a recorded case.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.models.conditioning import Conditioning
from tests.parity.golden import DEFAULT_FOLDER, Case, text_embedding
from tests.parity.recorded_network import network_of
from tests.parity.test_vae import vae_of

SCHEDULE = "06_schedule"
STEPS = 6


def write_case(
    folder: Path, name: str, content: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a case of its own: no other file of the folder is needed to read it."""
    folder.mkdir(exist_ok=True)
    content = {**content, "case": name, "tensors": {key: {} for key in tensors}}
    (folder / f"{name}.json").write_text(json.dumps(content))
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / f"{name}.safetensors")


def golden_json(name: str) -> dict[str, Any]:
    """The JSON of a recorded case."""
    return dict(json.loads((DEFAULT_FOLDER / f"{name}.json").read_text()))


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """fp32 in [-1.5, 1.5), fixed by the name."""
    return text_embedding(name, 1, math.prod(shape)).reshape(shape)


# item 06


def write_guidance_case(folder: Path) -> None:
    """Guidance that is told 50 steps in samplers of 25 and of 6, by its formula in fp64."""
    tensors = load_file(DEFAULT_FOLDER / f"{SCHEDULE}.safetensors")
    content = golden_json(SCHEDULE)
    stock = content["dynamic_cfg"]["stock"]
    content["dynamic_cfg"] = {"stock": stock}
    kept = {name: t for name, t in tensors.items() if not name.startswith("dynamic_cfg/")}
    for count in (25, STEPS):
        times = reversed(tensors[f"s1_5b/sampler{count}/timesteps"].tolist()[1:])
        angles = [math.pi * ((count - t) / stock["num_steps"]) ** stock["exp"] for t in times]
        scales = [1 + stock["scale"] * (1 - math.cos(angle)) / 2 for angle in angles]
        name = f"dynamic_cfg/stock/sampler{count}/scale_f64"
        kept[name] = torch.tensor(scales, dtype=torch.float64)
    write_case(folder, "06_other_steps", content, kept)


# item 08


@dataclass(frozen=True)
class Levels:
    """The noise levels of a sampler of six steps, and what the denoiser makes of them."""

    alpha: Tensor  # (7,), noisiest first
    quantised: Tensor  # (6,)
    index: Tensor  # (6,)
    timesteps: list[int]  # descending

    @classmethod
    def recorded(cls) -> Levels:
        tables = load_file(DEFAULT_FOLDER / f"{SCHEDULE}.safetensors")
        name = f"s1_5b/sampler{STEPS}"
        times = tables[f"{name}/timesteps"].tolist()[1:][::-1]
        return cls(
            tables[f"{name}/alphas_cumprod_sqrt"],
            tables[f"{name}/denoiser_quantized_alpha"],
            tables[f"{name}/denoiser_quantized_idx"],
            times,
        )

    def sigma(self, i: int) -> Tensor:
        return (1 - self.alpha[i] ** 2).sqrt()


@torch.no_grad()
def write_sampler_case(
    folder: Path, name: str, weights_from: str, *, fixed_frames: int = 0, ofs: float | None = None
) -> None:
    """DDIM with constant guidance: the recorded form of `engine.sample` with a prefix or `ofs`.

    Upstream's step r * x + (a' - a r) * x0, with frames put back before each step and at the end.
    """
    content = sampler_json(weights_from, fixed_frames)
    write_case(folder, name, content, {})
    (folder / f"{weights_from}.safetensors").write_bytes(
        (DEFAULT_FOLDER / f"{weights_from}.safetensors").read_bytes()
    )
    (folder / f"{weights_from}.json").write_text(
        (DEFAULT_FOLDER / f"{weights_from}.json").read_text()
    )
    network = network_of(Case(folder / f"{name}.json"))
    levels, scale = Levels.recorded(), 4.5
    frames = 6 if network.config.patch.frames == 2 else 3
    shape = (1, frames, network.config.out_channels, 8, 12)
    text = text_embedding(content["prompt"], 8, 32)[None]
    tensors = {
        "cond": text,
        "uncond": torch.zeros_like(text),
        "initial_noise": numbers(f"{name}/noise", shape),
        "alphas": levels.alpha[:-1].clone(),
        "alphas_quantized_in_denoiser": levels.quantised,
        "idx": torch.tensor(levels.timesteps),
        "scale_f64": torch.full((STEPS,), scale, dtype=torch.float64),
        "draws_per_step": torch.zeros(STEPS, dtype=torch.int64),
    }
    if network.config.in_channels > network.config.out_channels:
        tensors["concat"] = numbers(f"{name}/concat", shape)
    if ofs is not None:
        tensors["ofs"] = torch.tensor([ofs])
    prefix = numbers(f"{name}/prefix", shape)[:, :fixed_frames]
    if fixed_frames:
        tensors["prefix"] = prefix

    def predicted(x: Tensor, i: int, text: Tensor) -> Tensor:
        # One sample at a time, which the runner's doubled batch must equal.
        a, t = levels.quantised[i], torch.tensor([float(levels.timesteps[i])])
        given = Conditioning(text, tensors.get("concat"), tensors.get("ofs"))
        return a * x - (1 - a**2).sqrt() * network(x, t, given)

    x = tensors["initial_noise"]
    for i in range(STEPS):
        x = torch.cat([prefix, x[:, fixed_frames:]], dim=1)
        without, having = (predicted(x, i, t) for t in (tensors["uncond"], text))
        x0 = without + scale * (having - without)
        r = levels.sigma(i + 1) / levels.sigma(i)
        out = r * x + (levels.alpha[i + 1] - levels.alpha[i] * r) * x0
        step = {"x_in": x, "denoised": x0, "x_out": out}
        tensors |= {f"step{i}/{key}": value.clone() for key, value in step.items()}
        tensors |= {f"step{i}/denoised_{k}": v for k, v in (("uncond", without), ("cond", having))}
        x = out
    tensors["final"] = torch.cat([prefix, x[:, fixed_frames:]], dim=1)
    write_case(folder, name, content, tensors)


def sampler_json(weights_from: str, fixed_frames: int) -> dict[str, Any]:
    """The JSON of a recorded sampler with another network, DDIM and constant guidance."""
    content = golden_json("08b_sampler_ddim_5b")
    model = copy.deepcopy(content["model_config"])
    model["network_config"] = golden_json(weights_from)["network_config"]
    params = model["sampler_config"]["params"]
    params["num_steps"], params["fixed_frames"] = STEPS, fixed_frames
    params["guider_config"] = {
        "target": "sgm.modules.diffusionmodules.guiders.VanillaCFG",
        "params": {"scale": 4.5},
    }
    salt = golden_json(weights_from).get("weights_salt", weights_from)
    names = {"weights_from": weights_from, "weights_salt": salt}
    return {**content, "model_config": model, **names}


# item 14


@torch.no_grad()
def write_vae_export_case(folder: Path) -> None:
    """A conversion of a VAE with its clip beside it, by our VAE; the runner has diffusers' too."""
    content = {**golden_json("14_convert_vae"), "note": ""}
    write_case(folder, "14_own_clip", content, {})
    vae = vae_of(Case(folder / "14_own_clip.json"))
    clip = numbers("14_own_clip/x", (1, 3, 9, 16, 24))
    moments = vae.encoder(clip)
    decoded = vae.decode(vae.encode(clip.transpose(1, 2)).mode()).transpose(1, 2)
    tensors = {
        "x": clip,
        "sat_moments": moments,
        "sat_moments9": moments.clone(),
        "diffusers_moments": moments.clone(),
        "sat_decode_chunked": decoded,
        "diffusers_decode_first_frame": decoded[:, :, :1].clone(),
    }
    write_case(folder, "14_own_clip", content, tensors)
