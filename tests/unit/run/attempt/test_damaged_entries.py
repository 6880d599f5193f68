"""A file of the latent cache that changed since it was written is the fault of one clip."""

from __future__ import annotations

from pathlib import Path

from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.run.attempt.latents import CachedClips
from tests.support.encoding import write_inputs

STEPS, MICRO_BATCH = 3, 2


def test_an_entry_with_flipped_bytes_is_quarantined_and_its_places_are_filled(
    tmp_path: Path,
) -> None:
    inputs = write_inputs(tmp_path)
    inputs.encode()
    path = next(iter(inputs.cache.glob("*/shards/*/*")))
    data = bytearray(path.read_bytes())
    data[-8:-4] = bytes(byte ^ 0xFF for byte in data[-8:-4])
    path.write_bytes(data)
    config = inputs.config("--latent-cache", str(inputs.cache))
    cached = CachedClips.of_run(config)
    assert cached is not None
    request = LoaderRequest(
        paths=config.data.train,
        share=Share(0, 1, MICRO_BATCH),
        seed=3,
        replace=cached.cached_source,
    )

    with open_loader(config.data, request) as loader:
        batches = list(loader.batches(0, STEPS))
        news = loader.quarantine.take_news()

    assert [len(batch["positions"]) for batch in batches] == [MICRO_BATCH] * STEPS
    (bad,) = news
    assert bad.reason == "damaged_entry"
    assert path.name in bad.detail
    assert bad.key.startswith("videos/")
