"""Forward and backward at stock size on a GPU, tiny on the CPU; the figures become a file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.config.schema.encoders import VAEPartConfig
from app.config.schema.model import LoraConfig
from benchmarks.train_step import (
    Clip,
    Measurement,
    measure_all,
    model_flops,
    page,
    peak_of,
    stock_networks,
)
from tests.gpu.place import DEVICE, ON_GPU
from tests.support.networks import stock, tiny

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RUNS = 5 if ON_GPU else 1
STOCK = Clip()


def measured(folder: Path) -> tuple[list[Measurement], Path]:
    """The rows, and the file that holds them."""
    networks = stock_networks()
    clip, part = STOCK, VAEPartConfig()
    if not ON_GPU:
        tiny_lora = tiny("5b", lora=LoraConfig(rank=4))
        networks = [("2B, all weights", tiny("2b")), ("5B, LoRA", tiny_lora)]
        clip, part = Clip(9, 16, 32), VAEPartConfig(ch=32, num_res_blocks=1)
    rows = measure_all(networks, part, clip, DEVICE, RUNS)
    gpu = torch.cuda.get_device_name(DEVICE).replace(" ", "-").lower() if ON_GPU else "cpu"
    path = folder / f"train_step_{gpu}_{time.strftime('%Y%m%d')}.md"
    path.write_text(page(rows, DEVICE, clip, RUNS))
    return rows, path


@pytest.mark.timeout(1200)
def test_a_step_of_2b_and_of_5b_with_lora_and_an_encode_are_measured(tmp_path: Path) -> None:
    rows, path = measured(RESULTS if ON_GPU else tmp_path)

    text = path.read_text()
    peak = peak_of(DEVICE)
    assert [row.name.split(",")[0] for row in rows] == ["2B", "5B", "VAE encode"]
    for row in rows:
        assert row.seconds > 0
        assert row.name in text
        assert (row.peak_bytes > 0) == ON_GPU
        mfu = row.mfu(peak)
        assert (mfu is None) == (peak is None)
        assert mfu is None or 0 < mfu < 1


def test_model_flops_of_the_stock_sizes_are_the_published_arithmetic() -> None:
    # 3 x forward, and 2 x linear + 3 x attention: linear = L (24 S h^2 + 12 288 h), S tokens.
    networks = dict(stock_networks())
    found = {name[:2]: model_flops(config, STOCK) / 1e12 for name, config in networks.items()}

    assert abs(found["2B"] - 360) < 1
    pairs = 2 * 42 * 4 * 2 * 2 * 17776 * 3072 * 128 / 1e12  # their own products, twice
    assert abs(found["5B"] - (827 + pairs)) < 1
    without = replace(stock("5b"), lora=None)
    assert abs(model_flops(without, STOCK) / 1e12 - 997) < 1
