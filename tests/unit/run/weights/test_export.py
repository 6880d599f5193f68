"""Exports of a run, from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.checkpoint.completion import Completion, write_completion
from app.checkpoint.tensor_file import open_tensors
from app.conversion.export import export_safetensors
from app.conversion.loading import load_network_weights
from app.errors import CheckpointError, ConfigError, DataError, InputMissingError
from app.models.dit.transformer import DiffusionTransformer
from app.run.weights.export import ExportRequest, export_run
from app.storage.local import LocalStorage
from tests.support.configs import base, load
from tests.unit.run.weights.runs import MakeRun, Tensors, noise

pytestmark = pytest.mark.usefixtures("groups")


def export(tmp_path: Path, out: str | None = None, **how: object) -> list[str]:
    request = ExportRequest(**how)  # type: ignore[arg-type]
    return export_run(str(tmp_path / "runs/a"), request, out, tmp_path / "cache")


def read(path: str | Path) -> Tensors:
    with open_tensors(Path(path)) as tensors:
        return {name: tensors.read(name) for name in tensors.names()}


def test_a_full_run_gives_its_whole_network_into_its_own_folder(
    make_run: MakeRun, tmp_path: Path
) -> None:
    trained = make_run(steps=(2, 4))

    (file,) = export(tmp_path)

    assert file == f"{tmp_path}/runs/a/export/step-0000000004/model.safetensors"
    stored = read(file)
    assert all(torch.equal(stored[name], tensor) for name, tensor in trained.items())


def test_the_file_loads_again(make_run: MakeRun, tmp_path: Path) -> None:
    trained = make_run()

    (file,) = export(tmp_path, out=str(tmp_path / "out"))

    assert file == f"{tmp_path}/out/model.safetensors"
    model = load(*base("tiny/tiny")).model
    assert model is not None
    network = DiffusionTransformer(model.network.params)
    load_network_weights(network, Path(file))
    assert all(torch.equal(p, trained[name]) for name, p in network.named_parameters())


def test_a_finished_run_is_the_checkpoint_that_its_end_names(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(steps=(2, 4, 6))
    end = Completion(step=4, version="", checkpoint="step-0000000004.000001", last_attempt=1)
    write_completion(LocalStorage(tmp_path / "runs/a"), end)  # another trainer got to 6

    (file,) = export(tmp_path)

    name, tensor = next(iter(read(file).items()))
    assert "step-0000000004" in file
    assert torch.equal(tensor, noise(tensor.shape, 4)), name


def test_an_older_checkpoint_is_taken_with_a_warning_that_says_why(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(steps=(2, 4))
    (tmp_path / "runs/a/checkpoints/step-0000000004.000001/state.json").unlink()

    (file,) = export(tmp_path)

    assert "step-0000000002" in file
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert any("step-0000000004.000001 is damaged and passed over: state.json" in w for w in said)


@pytest.mark.parametrize("how", [{}, {"step": 4}])
def test_a_run_whose_only_checkpoint_is_damaged_is_not_exported(
    how: dict[str, int], make_run: MakeRun, tmp_path: Path
) -> None:
    make_run()
    (tmp_path / "runs/a/checkpoints/step-0000000004.000001/state.json").unlink()

    with pytest.raises(
        CheckpointError, match=r"none of them can be used: .*state\.json is missing"
    ):
        export(tmp_path, **how)


def test_a_damaged_configuration_of_the_run_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    (path,) = (tmp_path / "runs/a/config").iterdir()
    path.write_bytes(b"args: [")

    with pytest.raises(DataError) as caught:
        export(tmp_path)

    assert caught.value.where == str(path)


def test_an_older_step_can_be_asked_for(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(steps=(2, 4))

    (file,) = export(tmp_path, step=2)

    assert "step-0000000002" in file
    name, tensor = next(iter(read(file).items()))
    assert torch.equal(tensor, noise(tensor.shape, 2)), name


def test_averages_are_exported_where_the_run_kept_them(make_run: MakeRun, tmp_path: Path) -> None:
    trained = make_run(ema=True)

    (file,) = export(tmp_path, weights="ema", dtype="bf16")

    stored = read(file)
    assert all(torch.equal(stored[n], (t * 0.5).bfloat16()) for n, t in trained.items())


def test_averages_that_were_not_kept_are_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()

    with pytest.raises(ConfigError, match="no 'ema' weights") as caught:
        export(tmp_path, weights="ema")

    assert "--weights master" in caught.value.fix


@pytest.mark.parametrize("kind", ["auto", "lora"])
@pytest.mark.parametrize("url", ["null", "gone.safetensors"])
def test_a_lora_run_gives_its_pairs_without_what_was_frozen(
    kind: str, url: str, make_run: MakeRun, tmp_path: Path
) -> None:
    trained = make_run("tiny_lora", url=url)

    files = export(tmp_path, kind=kind)

    assert [Path(file).name for file in files] == [
        "pytorch_lora_weights.safetensors",
        "adapter_model.safetensors",
        "adapter_config.json",
    ]
    assert len(read(files[0])) == len(read(files[1])) == len(trained) == 16


def test_a_folded_scale_is_in_b_and_alpha_is_the_rank(make_run: MakeRun, tmp_path: Path) -> None:
    alpha = "model.network_config.params.modules.lora_config.params.lora_alpha=3"
    make_run("tiny_lora", more=(alpha,))
    url, cache = str(tmp_path / "runs/a"), tmp_path / "cache"

    def products(folded: bool) -> tuple[Tensor, float]:
        request = ExportRequest("lora", fold_scale=folded)
        file, *_ = export_run(url, request, str(tmp_path / f"out-{folded}"), cache)
        with open_tensors(Path(file)) as opened:
            entries = json.loads(opened.metadata["lora_adapter_metadata"])
            name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
            product = opened.read(name.format("B")) @ opened.read(name.format("A"))
        scale = entries["transformer.lora_alpha"] / entries["transformer.r"]
        return scale * product, scale

    plain, folded = products(False), products(True)

    assert folded[1] == 1.0 != plain[1]
    torch.testing.assert_close(folded[0], plain[0])


def test_a_whole_network_has_no_scale_to_fold(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()

    with pytest.raises(ConfigError, match="--fold-scale"):
        export_run(
            str(tmp_path / "runs/a"), ExportRequest(fold_scale=True), None, tmp_path / "cache"
        )


def test_a_lora_run_gives_a_whole_network_with_the_frozen_weights_it_began_with(
    make_run: MakeRun, tmp_path: Path
) -> None:
    model = load(*base("tiny/tiny")).model
    assert model is not None
    torch.manual_seed(8)
    frozen = DiffusionTransformer(model.network.params)
    path = tmp_path / "base.safetensors"
    export_safetensors(path, frozen.state_dict(), model.network.params)
    pairs = make_run("tiny_lora", url=str(path))

    (file,) = export(tmp_path, kind="safetensors")

    expected = {**frozen.state_dict(), **pairs}
    stored = read(file)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())


def test_frozen_weights_that_lie_nowhere_are_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("tiny_lora")

    with pytest.raises(InputMissingError, match="has no `load`") as caught:
        export(tmp_path, kind="safetensors")

    assert "--kind lora" in caught.value.fix


@pytest.mark.parametrize(("step", "says"), [(3, "of step 3"), (None, "no complete checkpoint")])
def test_a_checkpoint_that_is_not_there_is_66(
    step: int | None, says: str, make_run: MakeRun, tmp_path: Path
) -> None:
    if step is not None:
        make_run()

    with pytest.raises(InputMissingError, match=says) as caught:
        export(tmp_path, step=step)

    assert caught.value.exit_code == 66


def test_a_checkpoint_without_the_record_of_its_run_is_66(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run()
    for path in (tmp_path / "runs/a/attempts").iterdir():
        path.unlink()

    with pytest.raises(InputMissingError, match="there is no run here"):
        export(tmp_path)


IMAGE_TO_VIDEO = (
    "model.noised_image_input=true",
    "model.network_config.params.in_channels=8",
    "model.network_config.params.patch_size=[2,2,2]",
    "model.network_config.params.time_embed_dim=32",
    "model.network_config.params.ofs_embed_dim=32",
    "model.scale_factor=0.7",
)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), True),
        (("model.image_latent_scale=1.428571",), False),
        (("model.network_config.params.in_channels=4", "model.noised_image_input=false"), False),
    ],
    ids=["default", "for diffusers", "text to video"],
)
@pytest.mark.parametrize("kind", ["auto", "diffusers", "safetensors"])
def test_an_export_for_diffusers_says_that_the_image_latent_differs(
    kind: str,
    more: tuple[str, ...],
    says: bool,
    make_run: MakeRun,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_run("tiny_lora" if kind == "auto" else "tiny", more=(*IMAGE_TO_VIDEO, *more))

    with caplog.at_level("WARNING"):
        export(tmp_path, kind=kind)

    said = [one for one in caplog.messages if "image latent" in one]
    assert len(said) == (says and kind != "safetensors")
    assert all("model.image_latent_scale=1.428571" in one for one in said)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), False),
        (("args.rotary_positions=sat",), True),
        (("args.rotary_positions=sat", "data.buckets=null"), False),
    ],
)
@pytest.mark.parametrize("kind", ["auto", "diffusers", "safetensors"])
def test_an_export_for_diffusers_says_that_positions_of_other_sizes_differ(
    kind: str,
    more: tuple[str, ...],
    says: bool,
    make_run: MakeRun,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    buckets = "data.buckets=[9x32x64,9x64x32]"
    make_run("tiny_lora" if kind == "auto" else "tiny", more=(buckets, *more))

    with caplog.at_level("WARNING"):
        export(tmp_path, kind=kind)

    said = [one for one in caplog.messages if "64x32" in one]
    assert len(said) == (says and kind != "safetensors")
