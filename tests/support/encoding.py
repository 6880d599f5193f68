"""Tiny clips and random frozen weights in their real formats, for tests of the latent cache."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import app.run.encode.job
from app.config.schema.run import TrainableRun
from app.data.latent_cache import EncodePart
from app.models.text.t5 import TinyT5, write_tiny_t5
from app.models.vae.autoencoder import VideoAutoencoder
from app.run.encode.job import EncodeReport, EncodeRequest, encode
from tests.support.clip_files import write_folder
from tests.support.configs import base, load, load_trainable

CAPTIONS: dict[str, str | None] = {f"c{number}": f"a gray clip {number}" for number in range(5)}


@dataclass(frozen=True)
class Inputs:
    """A folder with clips/ (videos/ and labels/), t5/ and 3d-vae.pt, and where the cache goes."""

    folder: Path

    @property
    def clips(self) -> Path:
        return self.folder / "clips"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def words(self, *overrides: str) -> list[str]:
        """Words after the command: tiny model, clips as a folder, nothing validated."""
        return [
            *base("tiny/tiny", "tiny/tiny_sft"),
            *("--run-id", "tiny", "--save", str(self.folder / "runs")),
            f"args.train_data=[{self.clips}]",
            "args.valid_data=[]",
            f"model.conditioner_config.params.emb_models[0].params.model_dir={self.folder}/t5",
            f"model.first_stage_config.params.ckpt_path={self.folder}/3d-vae.pt",
            *overrides,
        ]

    def config(self, *overrides: str) -> TrainableRun:
        return load_trainable(*self.words(*overrides))

    def encode(
        self, *overrides: str, out: str = "", part: EncodePart | None = None
    ) -> EncodeReport:
        """What `cogvx encode` does, in this process."""
        request = EncodeRequest(out=out or str(self.cache), part=part or EncodePart(), workers=1)
        return encode(self.config(*overrides), request)

    def encode_twice_at_once(self, out: str = "") -> list[EncodeReport]:
        """Two jobs in threads; transformers can load one model at a time only."""
        lock, load_one = threading.Lock(), app.run.encode.job.build_text_encoder

        def load(*arguments: Any) -> Any:
            with lock:
                return load_one(*arguments)

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(app.run.encode.job, "build_text_encoder", load)
            jobs = [pool.submit(self.encode, out=out) for _ in range(2)]
            return [job.result() for job in jobs]

    def shards(self) -> dict[str, int]:
        """Files of the cache's entries -> when they were written, in ns."""
        return {path.name: path.stat().st_mtime_ns for path in self.cache.glob("*/shards/*/*")}


def write_inputs(folder: Path, captions: Mapping[str, str | None] = CAPTIONS) -> Inputs:
    """Make clips and weights; takes seconds, because transformers is imported."""
    write_folder(folder / "clips", dict(captions))
    write_weights(folder, seed=5)
    return Inputs(folder)


def write_weights(folder: Path, seed: int) -> None:
    """t5/ and 3d-vae.pt for configs/tiny/tiny.yaml, every posterior with a spread of its own."""
    model = load(*base("tiny/tiny")).model
    assert model is not None
    width = model.network.params.text_hidden_size
    words = [text for text in CAPTIONS.values() if text] * 8
    write_tiny_t5(folder / "t5", TinyT5(width=width), words, seed)
    torch.manual_seed(seed)
    vae = VideoAutoencoder(replace(model.first_stage.params, ckpt_path=None))
    torch.save({"state_dict": vae.state_dict()}, folder / "3d-vae.pt")
