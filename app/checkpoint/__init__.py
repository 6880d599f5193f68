"""Checkpoints: named fragments of tensors, complete or absent, readable at any layout."""
