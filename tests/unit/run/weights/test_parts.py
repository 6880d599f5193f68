"""The parts of a model are found by the names of releases, and a zip is unpacked with care."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.config.schema.diffusion import ScheduleConfig
from app.config.schema.model import LoraConfig
from app.conversion.export import export_diffusers, export_lora, export_sat
from app.conversion.pipeline import write_index
from app.errors import InputMissingError, WeightsError
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.t5 import TinyT5, write_tiny_t5
from app.run.weights.parts import checked_t5, checked_transformer, find_parts, unzipped
from tests.support.networks import tiny

T5_FILES = ("spiece.model", "config.json")


def touch(folder: Path, *keys: str) -> Path:
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
    return folder


def found(folder: Path) -> dict[str, str]:
    parts = find_parts(folder, {})
    return {name: path.relative_to(folder).as_posix() for name, path in parts.items()}


def test_parts_are_found_in_a_release_of_each_layout(tmp_path: Path) -> None:
    sat = touch(
        tmp_path / "sat",
        "transformer/latest",
        "vae/3d-vae.pt",
        *(f"t5-v1_1-xxl/{name}" for name in T5_FILES),
    )
    zipped = touch(tmp_path / "zipped", "__MACOSX/x", "release/latest", "release/3d-vae.pt")
    pipeline = touch(
        tmp_path / "pipeline",
        *("model_index.json", "transformer/config.json", "vae/config.json"),
        *("text_encoder/config.json", "tokenizer/spiece.model"),
    )

    assert found(sat) == {"transformer": "transformer", "vae": "vae/3d-vae.pt", "t5": "t5-v1_1-xxl"}
    assert found(zipped) == {"transformer": "release", "vae": "release/3d-vae.pt"}
    assert found(pipeline) == {"transformer": "transformer", "vae": "vae", "t5": "."}


def test_a_given_part_wins_and_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    source = touch(tmp_path / "sat", "transformer/latest", "vae/3d-vae.pt")
    given = {"vae": tmp_path / "my.pt"}

    assert find_parts(source, given) == {
        "transformer": source / "transformer",
        "vae": tmp_path / "my.pt",
    }
    assert find_parts(source / "vae/3d-vae.pt", {}) == {"vae": source / "vae/3d-vae.pt"}
    with pytest.raises(InputMissingError, match="found no part of a model"):
        find_parts(touch(tmp_path / "empty", "README.md"), {})


def test_of_a_sat_folder_only_the_checkpoint_that_latest_names_is_taken(tmp_path: Path) -> None:
    config = tiny("2b")
    network = DiffusionTransformer(config)
    export_sat(tmp_path, network.state_dict(), config)
    tag = (tmp_path / "latest").read_text().strip()
    touch(tmp_path, "9999/mp_rank_00_model_states.pt", f"{tag}/.hidden")

    part, read = checked_transformer(tmp_path, config)

    assert set(part.files) == {
        "latest",
        "training_config.yaml",
        f"{tag}/mp_rank_00_model_states.pt",
    }
    assert (part.entry, part.facts["layout"], part.facts["dtype"]) == ("", "sat", "float32")
    assert part.facts["tensors"] == len(network.state_dict())
    assert read.hidden_size == 32


def test_a_lora_is_not_a_network(tmp_path: Path) -> None:
    config = tiny("5b", lora=LoraConfig(rank=2))
    export_lora(tmp_path, DiffusionTransformer(config).state_dict(), config)

    with pytest.raises(WeightsError, match="this is a LoRA"):
        checked_transformer(tmp_path, None)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    words = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
    write_tiny_t5(folder, TinyT5(width=16), words * 8, seed=3)
    return folder


def test_a_text_encoder_is_taken_in_one_folder_or_in_two(t5: Path, tmp_path: Path) -> None:
    apart = tmp_path / "pipeline"
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(t5, apart / name)
    names = sorted(path.name for path in t5.iterdir())

    whole, two = checked_t5(t5, 16), checked_t5(apart, None)

    assert sorted(whole.files) == names
    assert sorted(two.files) == sorted(
        f"{f}/{n}" for f in ("text_encoder", "tokenizer") for n in names
    )
    assert whole.facts["width"] == two.facts["width"] == 16


def test_a_text_encoder_of_another_width_or_with_lost_tensors_is_refused(
    t5: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        WeightsError, match="gives embeddings of width 16, and the network takes 4096"
    ):
        checked_t5(t5, 4096)

    broken = Path(shutil.copytree(t5, tmp_path / "t5"))
    [file] = broken.glob("*.safetensors")
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith("SelfAttention.q.weight"))
    tensors["decoder.block.0.weight"] = torch.zeros(1)  # the whole T5 was given: fine
    tensors["stray"] = torch.zeros(1)
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"T5 encoder: 1 missing or .* 1 unexpected") as caught:
        checked_t5(broken, 16)
    assert f"{lost}, stray" in caught.value.what


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("vae/3d-vae.pt", b"weights")

    folder = unzipped(tmp_path / "a.zip", tmp_path)

    assert (folder / "vae/3d-vae.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["../up.pt", "/etc/up.pt", "a/../../up.pt", "link"])
def test_a_zip_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    info = zipfile.ZipInfo(name)
    if name == "link":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")

    with pytest.raises(WeightsError, match="points outside it"):
        unzipped(tmp_path / "a.zip", tmp_path / "in")

    assert list((tmp_path / "in").iterdir()) == []


def test_a_damaged_zip_and_a_full_disk_have_errors_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"x" * 100)

    with pytest.raises(WeightsError, match="the zip is damaged"):
        unzipped(tmp_path / "cut.zip", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99))
    with pytest.raises(InputMissingError, match="needs 100 bytes, and 99 are free"):
        unzipped(tmp_path / "a.zip", tmp_path)


def test_a_network_of_a_pipeline_with_other_noise_is_refused(tmp_path: Path) -> None:
    config = tiny("5b")
    folder = tmp_path / "transformer"
    export_diffusers(folder, DiffusionTransformer(config).state_dict(), config)
    assert checked_transformer(folder, None)[1] == config
    write_index(tmp_path, config, ScheduleConfig(), "dpm")
    path = tmp_path / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "epsilon"))

    with pytest.raises(WeightsError, match="prediction_type 'epsilon'"):
        checked_transformer(folder, None)
