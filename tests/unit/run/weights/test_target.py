"""Where converted weights go: nothing is replaced unasked, and nothing stale stays to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import UsageError
from app.run.weights.target import open_target


def write(folder: Path, *keys: str, content: str = "old") -> None:
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_text(content)


def keys_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("url", "folder", "file_name"),
    [
        ("out/net.safetensors", "out", "net.safetensors"),
        ("net.pt", ".", "net.pt"),
        ("s3://b/w/", "s3://b/w", None),
        ("out/v1.5", "out/v1.5", None),
        ("/", "/", None),
    ],
)
def test_a_name_of_weights_is_a_file_and_any_other_a_folder(
    url: str, folder: str, file_name: str | None
) -> None:
    target = open_target(url, overwrite=False)

    assert (target.url, target.file_name) == (folder, file_name)


def test_weights_in_the_target_are_refused_and_files_of_others_are_not(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "notes/latest")
    with open_target(str(tmp_path), overwrite=False).staging() as folder:
        assert list(folder.iterdir()) == []

    write(tmp_path, "transformer/1/mp_rank_00_model_states.pt")
    refused = open_target(str(tmp_path), overwrite=False)
    with (
        pytest.raises(UsageError, match="transformer/1/mp_rank_00_model_states"),
        refused.staging(),
    ):
        pytest.fail("nothing is staged")
    with open_target(str(tmp_path), overwrite=True).staging():
        pass
    with open_target(str(tmp_path / "new.pt"), overwrite=False).staging():
        pass


def test_the_staging_folder_is_on_the_disk_of_the_target_and_goes_away(tmp_path: Path) -> None:
    with open_target(str(tmp_path / "a/out"), overwrite=False).staging() as folder:
        assert folder.parent == tmp_path / "a"
        write(folder, "left.txt")

    assert keys_of(tmp_path) == []


def test_old_weights_beside_the_new_ones_are_deleted_and_those_of_other_parts_stay(
    tmp_path: Path,
) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    shard = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
    index = "diffusion_pytorch_model.safetensors.index.json"
    old = [f"transformer/{name}" for name in (shard.format(1), shard.format(2), index)]
    write(out, *old, "transformer/notes.txt", "vae/diffusion_pytorch_model.safetensors")
    write(new, "transformer/diffusion_pytorch_model.safetensors", content="new")

    urls = open_target(str(out), overwrite=True).publish(new)

    assert urls == [f"{out}/transformer/diffusion_pytorch_model.safetensors"]
    assert keys_of(out) == [
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/notes.txt",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert (out / "transformer/diffusion_pytorch_model.safetensors").read_text() == "new"
    assert keys_of(new) == []  # moved, not copied


def test_what_says_that_the_rest_is_complete_comes_last(tmp_path: Path) -> None:
    new = tmp_path / "new"
    write(new, "latest", "1/mp_rank_00_model_states.pt", "model_index.json", "vae/config.json")
    target = open_target(str(tmp_path / "out"), overwrite=False)

    target.publish(new)

    assert target.keys == [
        "1/mp_rank_00_model_states.pt",
        "vae/config.json",
        "latest",
        "model_index.json",
    ]
