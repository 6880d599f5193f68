"""The frozen text encoder and caption dropout."""
