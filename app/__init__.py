"""cogvx-train: fine-tune CogVideoX on Kubernetes from videos in a bucket."""

__version__ = "0.1.0"
