"""The CogVideoX diffusion transformer (DiT)."""
