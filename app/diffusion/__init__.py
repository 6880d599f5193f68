"""Noise schedule, denoiser, loss, guidance and samplers. The network is an argument."""
