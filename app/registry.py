"""THE table: every `target:` name that a configuration may use, and what it means.

No other name can be imported from a configuration. Classes are strings, so that checking a
configuration imports nothing; `run` resolves them. A user's own class comes in by the flag
`--register NAME=package.module:Class`, never from YAML. Rows without a class describe a part of
the class above them. Names on the left are upstream's.
"""

from __future__ import annotations

from app.config.schema.data import SFTDataConfig, ShardDataConfig
from app.config.schema.diffusion import (
    DenoiserConfig,
    GuidanceConfig,
    LossConfig,
    SamplerConfig,
    ScheduleConfig,
    TimestepConfig,
)
from app.config.schema.encoders import ConditionerConfig, T5Config, VAEConfig, VAEPartConfig
from app.config.schema.model import DiTConfig, LoraConfig, PatchSize, PositionConfig
from app.config.schema.training import OptimizerConfig
from app.config.target import RegistryRow

_DIFFUSION = "sgm.modules.diffusionmodules"
_SAMPLING = f"{_DIFFUSION}.sampling"
_GUIDERS = f"{_DIFFUSION}.guiders"

TARGETS: dict[str, RegistryRow] = {
    # network
    "dit_video_concat.DiffusionTransformer": RegistryRow(
        DiTConfig, "app.models.dit.transformer:DiffusionTransformer", role="network"
    ),
    "dit_video_concat.Basic3DPositionEmbeddingMixin": RegistryRow(
        PositionConfig, role="position", choice="sincos3d"
    ),
    "dit_video_concat.Basic2DPositionEmbeddingMixin": RegistryRow(
        PositionConfig, role="position", choice="sincos2d"
    ),
    "dit_video_concat.Rotary3DPositionEmbeddingMixin": RegistryRow(
        PositionConfig, role="position", choice="rope3d"
    ),
    "dit_video_concat.ImagePatchEmbeddingMixin": RegistryRow(PatchSize, role="patch"),
    "dit_video_concat.AdaLNMixin": RegistryRow(DiTConfig, role="adaln"),
    "dit_video_concat.FinalLayerMixin": RegistryRow(DiTConfig, role="final layer"),
    "sat.model.finetune.lora2.LoraMixin": RegistryRow(LoraConfig, role="lora"),
    f"{_DIFFUSION}.wrappers.OpenAIWrapper": RegistryRow(DiTConfig, role="wrapper"),
    # text
    "sgm.modules.GeneralConditioner": RegistryRow(ConditionerConfig, role="conditioner"),
    "sgm.modules.encoders.modules.FrozenT5Embedder": RegistryRow(
        T5Config, "app.models.text.t5:T5TextEncoder", role="text encoder"
    ),
    # first stage
    "vae_modules.autoencoder.VideoAutoencoderInferenceWrapper": RegistryRow(
        VAEConfig, "app.models.vae.autoencoder:VideoAutoencoder", role="first stage"
    ),
    "vae_modules.cp_enc_dec.ContextParallelEncoder3D": RegistryRow(
        VAEPartConfig, role="vae encoder"
    ),
    "vae_modules.cp_enc_dec.ContextParallelDecoder3D": RegistryRow(
        VAEPartConfig, role="vae decoder"
    ),
    "vae_modules.regularizers.DiagonalGaussianRegularizer": RegistryRow(
        VAEConfig, role="regularizer"
    ),
    "torch.nn.Identity": RegistryRow(VAEConfig, role="vae loss"),
    # diffusion
    f"{_DIFFUSION}.denoiser.DiscreteDenoiser": RegistryRow(DenoiserConfig, role="denoiser"),
    f"{_DIFFUSION}.denoiser_weighting.EpsWeighting": RegistryRow(DenoiserConfig, role="weighting"),
    f"{_DIFFUSION}.denoiser_scaling.VideoScaling": RegistryRow(DenoiserConfig, role="scaling"),
    f"{_DIFFUSION}.discretizer.ZeroSNRDDPMDiscretization": RegistryRow(
        ScheduleConfig, role="schedule"
    ),
    f"{_DIFFUSION}.sigma_sampling.DiscreteSampling": RegistryRow(TimestepConfig, role="timesteps"),
    f"{_DIFFUSION}.loss.VideoDiffusionLoss": RegistryRow(LossConfig, role="loss"),
    # samplers and guidance
    f"{_SAMPLING}.VPSDEDPMPP2MSampler": RegistryRow(
        SamplerConfig,
        "app.diffusion.samplers.dpmpp_2m:SdeSampler",
        role="sampler",
        scheduler="dpm",
    ),
    f"{_SAMPLING}.VPODEDPMPP2MSampler": RegistryRow(
        SamplerConfig, "app.diffusion.samplers.dpmpp_2m:OdeSampler", role="sampler"
    ),
    f"{_SAMPLING}.VideoDDIMSampler": RegistryRow(
        SamplerConfig, "app.diffusion.samplers.ddim:DdimSampler", role="sampler", scheduler="ddim"
    ),
    f"{_GUIDERS}.DynamicCFG": RegistryRow(
        GuidanceConfig, "app.diffusion.guidance:DynamicGuidance", "guidance", "dynamic"
    ),
    f"{_GUIDERS}.VanillaCFG": RegistryRow(
        GuidanceConfig, "app.diffusion.guidance:ConstantGuidance", "guidance", "constant"
    ),
    f"{_GUIDERS}.IdentityGuider": RegistryRow(
        GuidanceConfig, "app.diffusion.guidance:ConstantGuidance", "guidance", "identity"
    ),
    f"{_DIFFUSION}.sampling_utils.NoDynamicThresholding": RegistryRow(
        GuidanceConfig, role="threshold"
    ),
    # data
    "data_video.SFTDataset": RegistryRow(
        SFTDataConfig, "app.data.sources.sft:SFTSource", role="dataset"
    ),
    "data_video.VideoDataset": RegistryRow(
        ShardDataConfig, "app.data.sources.webdataset:ShardSource", role="dataset"
    ),
    # deepspeed.optimizer.type
    "sat.ops.FusedEmaAdam": RegistryRow(OptimizerConfig, role="optimizer", choice="ema_adamw"),
    "AdamW": RegistryRow(OptimizerConfig, role="optimizer", choice="adamw"),
    "Adam": RegistryRow(OptimizerConfig, role="optimizer", choice="adam"),
}
