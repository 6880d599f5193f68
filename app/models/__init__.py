"""The networks: diffusion transformer, LoRA, VAE, text encoder."""
