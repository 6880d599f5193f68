"""From videos in a folder or a bucket to batches of uint8 frames, in an order that can resume."""
