"""A LoRA goes on in a new run: from everything that is written of one, with the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.checkpoint.tensor_file import open_tensors, write_tensors
from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.export import export_lora, export_safetensors, export_sat_lora
from app.distributed.rank_group import RankGroup
from app.errors import CogvxError, WeightsError
from app.models.dit.parallel import own_part, split_network
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.linear import pairs_among
from app.run.weights.export import ExportRequest, export_run
from app.run.weights.first_pairs import load_first_pairs
from tests.support.configs import TINY, base, load, load_trainable
from tests.unit.run.weights.runs import MakeRun, Tensors

pytestmark = pytest.mark.usefixtures("groups")

LORA = LoraConfig(rank=8, alpha=2.0)
ALPHA = "model.network_config.params.modules.lora_config.params.lora_alpha={:g}"
FOLDER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def config(lora: LoraConfig | None = LORA) -> DiTConfig:
    model = load(*base("tiny/tiny_lora")).model
    assert model is not None
    return replace(model.network.params, lora=lora)


def pairs_of(url: Path | str, tmp_path: Path, lora: LoraConfig = LORA) -> Tensors:
    """The pairs of a new network that begins with those at a URL."""
    torch.manual_seed(5)
    network = DiffusionTransformer(config(lora))
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    load_first_pairs(network, str(url), tmp_path / "cache", scratch)
    return {n: t.detach() for n, t in pairs_among(dict(network.named_parameters())).items()}


def trained() -> Tensors:
    """A whole network with pairs that are not at their start."""
    torch.manual_seed(1)
    network = DiffusionTransformer(config())
    with torch.no_grad():
        for pair in pairs_among(dict(network.named_parameters())).values():
            pair.normal_()
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(found: Tensors, expected: Tensors) -> None:
    pairs = pairs_among(expected)
    assert set(found) == set(pairs)
    assert len(pairs) == 16
    assert all(torch.equal(found[name], tensor) for name, tensor in pairs.items())


def test_a_run_and_each_of_its_checkpoints_give_their_pairs(
    make_run: MakeRun, tmp_path: Path
) -> None:
    expected = make_run("tiny_lora", steps=(2, 4), more=(ALPHA.format(2),))
    run = tmp_path / "runs/a"

    assert_same(pairs_of(run, tmp_path), expected)
    for folder in sorted((run / "checkpoints").iterdir()):
        found = pairs_of(folder, tmp_path)
        is_last = all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert is_last is ("0000000004" in folder.name)


@pytest.mark.parametrize(
    ("kind", "fold_scale"), [("lora", None), ("lora", False), ("safetensors", None)]
)
def test_what_a_run_exports_gives_the_pairs_of_its_checkpoint(
    kind: str, fold_scale: bool | None, make_run: MakeRun, tmp_path: Path
) -> None:
    model = config(None)
    torch.manual_seed(8)
    frozen = DiffusionTransformer(model)
    export_safetensors(tmp_path / "base.safetensors", frozen.state_dict(), model)
    url = str(tmp_path / "base.safetensors")
    expected = make_run("tiny_lora", url=url, more=(ALPHA.format(2),))
    request = ExportRequest(kind, fold_scale=fold_scale)

    files = export_run(str(tmp_path / "runs/a"), request, str(tmp_path / "out"), tmp_path / "c")

    for place in (tmp_path / "out", *(file for file in files if file.endswith(".safetensors"))):
        assert_same(pairs_of(place, tmp_path), expected)


def test_the_scale_that_an_export_moved_into_b_is_taken_out_again(tmp_path: Path) -> None:
    state = trained()

    export_lora(tmp_path / "out", state, config())

    name = "blocks.0.attention.q.lora_b"
    theirs = "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight"
    with open_tensors(tmp_path / "out/pytorch_lora_weights.safetensors") as file:
        assert torch.equal(file.read(theirs), state[name] / 4)  # alpha 2, r 8
    assert torch.equal(pairs_of(tmp_path / "out", tmp_path)[name], state[name])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_folder_of_peft_itself_gives_its_pairs(suffix: str, tmp_path: Path) -> None:
    state = trained()
    export_lora(tmp_path / "ours", state, config(), fold_scale=False)
    theirs = tmp_path / "peft"
    theirs.mkdir()
    with open_tensors(tmp_path / "ours" / FOLDER) as file:
        tensors = {name: file.read(name) for name in file.names()}
    if suffix == ".bin":
        torch.save(tensors, theirs / "adapter_model.bin")
    else:
        write_tensors(theirs / FOLDER, tensors, {"format": "pt"})
    entries = {"peft_type": "LORA", "r": 8, "lora_alpha": 2, "target_modules": ["to_q", "to_k"]}
    (theirs / CONFIG).write_text(json.dumps(entries))

    assert_same(pairs_of(theirs, tmp_path), state)
    assert_same(pairs_of(theirs / f"adapter_model{suffix}", tmp_path), state)


def test_a_sat_checkpoint_of_pairs_gives_them(tmp_path: Path) -> None:
    state = trained()

    export_sat_lora(tmp_path / "sat", pairs_among(state), LORA)

    assert_same(pairs_of(tmp_path / "sat", tmp_path), state)


@pytest.mark.parametrize(
    "lora", [LoraConfig(rank=8, alpha=8.0), LoraConfig(rank=4, alpha=2.0)], ids=["alpha", "rank"]
)
@pytest.mark.parametrize("fold_scale", [True, False])
def test_another_rank_or_alpha_is_an_error_with_the_numbers_of_both(
    lora: LoraConfig, fold_scale: bool, tmp_path: Path
) -> None:
    export_lora(tmp_path / "out", trained(), config(), fold_scale=fold_scale)

    with pytest.raises(WeightsError) as caught:
        pairs_of(tmp_path / "out", tmp_path, lora)

    assert "rank 8 and alpha 2" in caught.value.what
    assert f"r {lora.rank} and lora_alpha {lora.alpha:g}" in caught.value.what
    assert "r: 8 and lora_alpha: 2" in caught.value.fix


def test_a_file_without_alpha_says_what_was_assumed(tmp_path: Path) -> None:
    export_lora(tmp_path / "out", trained(), config())
    with open_tensors(tmp_path / "out" / FOLDER) as file:
        tensors = {name: file.read(name) for name in file.names()}
    write_tensors(tmp_path / "bare.safetensors", tensors, {"format": "pt"})

    with pytest.raises(WeightsError, match="taken as the rank") as caught:
        pairs_of(tmp_path / "bare.safetensors", tmp_path)

    assert "rank 8 and alpha 8" in caught.value.what


def test_pairs_of_other_layers_are_named(tmp_path: Path) -> None:
    first = {name: t for name, t in trained().items() if not name.startswith("blocks.1.")}
    export_lora(tmp_path / "out", first, config(replace(LORA, layer_range=(0,))))

    with pytest.raises(WeightsError, match=r"8 missing \(blocks\.1\.attention") as caught:
        pairs_of(tmp_path / "out", tmp_path)

    assert "layer_range" in caught.value.fix


@pytest.mark.parametrize("what", ["nothing", "full run", "whole network", "text"])
def test_what_is_no_lora_is_named(what: str, make_run: MakeRun, tmp_path: Path) -> None:
    place = tmp_path / "there"
    if what == "full run":
        make_run()
        place = tmp_path / "runs/a"
    elif what == "whole network":
        plain = config(None)
        export_safetensors(place, DiffusionTransformer(plain).state_dict(), plain)
        place = place.rename(tmp_path / "there.safetensors")
    elif what == "text":
        place.write_text("a LoRA")

    with pytest.raises(CogvxError) as caught:
        pairs_of(place, tmp_path)

    assert str(place) in caught.value.where
    assert caught.value.exit_code in (65, 66)


def test_a_rank_that_shares_the_network_gets_its_part(tmp_path: Path) -> None:
    state = trained()
    export_lora(tmp_path / "out", state, config())
    found: list[dict[str, Tensor]] = []
    for rank in range(2):
        network = DiffusionTransformer(config())
        split_network(network, RankGroup(rank, 2))
        load_first_pairs(network, str(tmp_path / "out"), tmp_path, tmp_path)
        found.append({n: t.detach() for n, t in network.named_parameters() if ".lora_" in n})

    for rank, parts in enumerate(found):
        group = RankGroup(rank, 2)
        assert all(torch.equal(t, own_part(n, state[n], group)) for n, t in parts.items())


def test_a_network_without_lora_refuses_it_before_anything_is_read() -> None:
    with pytest.raises(CogvxError, match="lora_from") as caught:
        load_trainable(*TINY, "--lora-from", "s3://nowhere/lora")

    assert "lora_config" in str(caught.value)
