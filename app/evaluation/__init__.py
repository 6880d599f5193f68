"""What a trained network is worth: validation loss, sample videos, video files."""
