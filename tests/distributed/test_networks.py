"""The real network, with recomputed activations and LoRA, under every ZeRO stage."""

from __future__ import annotations

import json

import pytest

from tests.distributed.rank_processes import outputs, run_processes

REL = {"fp32": 2e-6, "bf16": 3e-3}


@pytest.mark.slow
def test_every_kind_of_network_trains_alike_under_every_stage() -> None:
    ended = run_processes(
        ["tests/distributed/networks.py"], ranks=[0, 1], world_size=2, timeout_s=280
    )

    first, second = (json.loads(text.splitlines()[-1]) for text in outputs(ended))

    plain: dict[tuple[str, bool, str], list[float]] = {}
    for one, other in zip(first, second, strict=True):
        kind, is_lora, stage, precision = one["job"]
        if stage == 0:
            plain[kind, is_lora, precision] = one["losses"]
        expected = plain[kind, is_lora, precision]
        assert one["losses"] == pytest.approx(expected, rel=REL[precision]), one["job"]
        if not is_lora:  # two steps move the few LoRA weights by less than rounding
            assert one["losses"][0] > one["losses"][1] > one["losses"][2], one["job"]
        assert one["grad_norm"] > 0
        # Between them the ranks save every trained parameter.
        assert sorted({*one["saved"], *other["saved"]}) == one["trained"], one["job"]
        assert all("lora_" in name for name in one["trained"]) is is_lora
