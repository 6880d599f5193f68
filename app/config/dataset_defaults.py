"""Defaults of `cogvx data`: its help shows them without importing what reads videos."""

from __future__ import annotations

from app.config.schema.data import Bucket

DEFAULT_SHARD_MIB = 256
MOST_LEFT_OUT = 0.01  # share of a folder's videos that `cogvx data pack` may leave out
# What a dataset could be used for, when nothing says what it is for: the stock size and shorter
# and squarer ones of about as many pixels.
DEFAULT_BUCKETS = tuple(
    Bucket(frames, rows, columns)
    for frames in (49, 33, 17)
    for rows, columns in ((480, 720), (576, 576), (720, 480))
)
DEFAULT_FPS = 8.0
TXT_KEY = "caption"  # member of a shard with the caption
MOST_TOKENS = 226  # max_length of the released text encoders' configurations
