"""One video file: decoding in a process of its own, frames, sizes, transforms."""
