"""What an encoded clip depends on keeps its form: another digest is another cache."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from app.config.runnable import encodable_run
from app.run.encode.settings import cache_settings
from app.storage.local import LocalStorage
from tests.support.configs import base, load


def test_the_settings_of_a_stock_configuration_are_those_of_caches_made_before(
    tmp_path: Path,
) -> None:
    words = (
        "args.train_data=[clips]",
        "args.valid_data=[clips]",
        "model.first_stage_config.params.ckpt_path=nowhere/vae.pt",
        "model.conditioner_config.params.emb_models.0.params.model_dir=nowhere/t5",
    )
    config = encodable_run(load(*base("cogvideox_2b_lora", "sft"), *words))

    values = cache_settings(config, LocalStorage(tmp_path)).values

    assert values["text"] == {"class": "app.models.text.t5:T5TextEncoder", "params": {}}
    vae = values["vae"]
    assert isinstance(vae, dict)
    text = json.dumps(vae["encoder"], sort_keys=True).encode()
    assert (
        sha256(text).hexdigest()
        == "40bf8dd21d6bfd7db20305b7d61ea8aa9c30d4d598d886a3b0c4e95cb714b695"
    )
