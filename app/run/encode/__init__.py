"""Encode every clip once, into the latent cache."""
