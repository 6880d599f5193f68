"""Section `model:` as a whole: its own keys, its parts, and what must agree between them."""

from __future__ import annotations

from typing import Any

from app.config import upstream
from app.config.kinds import boolean, exactly, integer, optional, real, sequence, text
from app.config.problems import Problems
from app.config.reader import Context, Field, Reader, rows
from app.config.schema.encoders import VAEConfig
from app.config.schema.model import DiTConfig, ModelConfig
from app.config.sections.diffusion import read_denoiser, read_loss, read_sampler
from app.config.sections.encoders import read_conditioner, read_first_stage
from app.config.sections.network import read_dit

MODEL = rows(
    ModelConfig,
    Field("scale_factor", real(above=0)),
    Field("latent_input", boolean()),
    Field("noised_image_input", boolean()),
    Field("noised_image_all_concat", boolean()),
    Field("noised_image_dropout", real(0, 1)),
    Field("image_latent_scale", optional(real(above=0))),
    Field("ofs", real()),
    Field("not_trainable_prefixes", sequence(text(), single=True)),
    Field("lora_train", boolean()),
    Field("en_and_decode_n_samples_a_time", optional(integer(1)), name="encode_batch"),
    Field("compile_model", boolean()),
    Field("input_key", text()),
    Field(
        "lr_scale", optional(exactly(None, "upstream's low-resolution path is broken")), None, ""
    ),
)
PARTS = {
    "network_config": ("network", read_dit),
    "denoiser_config": ("denoiser", read_denoiser),
    "conditioner_config": ("conditioner", read_conditioner),
    "first_stage_config": ("first_stage", read_first_stage),
    "loss_fn_config": ("loss", read_loss),
    "sampler_config": ("sampler", read_sampler),
}
SCHEDULES = {
    "denoiser": "denoiser_config.params.discretization_config.params",
    "loss": "loss_fn_config.params.sigma_sampler_config.params.discretization_config.params",
    "sampler": "sampler_config.params.discretization_config.params",
}


def read_model(node: object, where: str, context: Context) -> ModelConfig | None:
    """Section `model:`; None, with the mistakes recorded, if it cannot be read."""
    problems = context.problems
    before = problems.count
    reader = Reader(node, where, problems)
    reader.dead(upstream.DEAD_MODEL)
    values = reader.fields(MODEL)
    for key, (name, read) in PARTS.items():
        values[name] = read(reader.raw(key), reader.path(key), context)
    reader.close()
    _check_schedules(values, where, problems)
    if problems.count > before:
        return None
    _check_agreement(values, where, problems)
    if problems.count > before:
        return None
    return problems.build(ModelConfig, values)


def _check_schedules(values: dict[str, Any], where: str, problems: Problems) -> None:
    loss, sampler = values["loss"], values["sampler"]
    schedules = {
        "denoiser": values["denoiser"].schedule if values["denoiser"] else None,
        "loss": loss.timesteps.schedule if loss else None,
        "sampler": sampler.params.schedule if sampler else None,
    }
    prefix = f"{where}." if where else ""
    upstream.check_schedules(
        {prefix + SCHEDULES[name]: schedule for name, schedule in schedules.items()}, problems
    )


def _check_agreement(values: dict[str, Any], where: str, problems: Problems) -> None:
    """Sizes written in two parts of the model that must fit each other."""
    network, first_stage = values["network"].params, values["first_stage"].params
    _check_image_channels(network, values, where, problems)
    _check_text_length(network, values, where, problems)
    if isinstance(first_stage, VAEConfig):
        latents = first_stage.encoder.z_channels
        if latents != network.out_channels:
            problems.add(
                f"the VAE gives {latents} latent channels, the network {network.out_channels}",
                where=f"{where}.network_config.params.out_channels",
                fix="make z_channels of encoder and decoder equal to out_channels",
            )


def _check_image_channels(
    network: DiTConfig, values: dict[str, Any], where: str, problems: Problems
) -> None:
    if values["noised_image_input"] and network.in_channels <= network.out_channels:
        problems.add(
            f"image-to-video needs channels for the image, but in_channels is "
            f"{network.in_channels} and out_channels {network.out_channels}",
            where=f"{where}.network_config.params.in_channels",
            fix=f"use {2 * network.out_channels}, or set noised_image_input: false",
        )


def _check_text_length(
    network: DiTConfig, values: dict[str, Any], where: str, problems: Problems
) -> None:
    position, conditioner = network.position, values["conditioner"]
    table = position.kind != "rope3d" or position.learnable
    length = conditioner.text.max_length
    known = conditioner.params is None or "max_length" in conditioner.params
    if table and known and length != position.text_length:
        problems.add(
            f"captions have {length} tokens, the position table {position.text_length}",
            where=f"{where}.network_config.params.modules.pos_embed_config.params.text_length",
            fix="make text_length and max_length equal",
        )
