"""The 3D causal autoencoder that turns clips into latents and back."""
