"""`cogvx weights put`: what lies in the bucket is whole, checked, and named by the printed YAML."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli.main import main
from app.config.load import load_config
from app.registry import TARGETS
from tests.support.configs import CONFIGS
from tests.support.s3_servers import set_environment
from tests.support.tiny_run import TinyWorld

TINY = str(CONFIGS / "tiny/tiny.yaml")
BASE = ("--base", TINY)


@pytest.fixture(autouse=True)
def server(world: TinyWorld, tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, world.environment(tmp_path / "tmp"))
        yield


@pytest.fixture
def weights(world: TinyWorld, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(world.weights, tmp_path / "weights")
    (tmp_path / "weights/t5/README.md").write_text("as downloaded")
    return tmp_path / "weights"


def call(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    ended = main(["weights", *(str(word) for word in words), "--json"])
    shown = capsys.readouterr()
    assert ended == code, shown.err
    return dict(json.loads(shown.out)) if code == 0 else {"err": shown.err}


def files_below(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    return {name: content for name, content in found.items() if not name.startswith("weights.json")}


def test_the_printed_yaml_names_what_was_put(
    world: TinyWorld, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put = call(capsys, "put", weights, "s3://weights/put", *BASE)

    (tmp_path / "weights.yaml").write_text(put["yaml"])
    config = load_config(
        ["--base", TINY, str(CONFIGS / "tiny/tiny_train.yaml"), str(tmp_path / "weights.yaml")],
        TARGETS,
    )
    assert config.model is not None
    assert config.arguments["load"] == "s3://weights/put/transformer"
    assert config.model.first_stage.params.ckpt_path == "s3://weights/put/vae/3d-vae.pt"
    encoder = config.model.conditioner.text
    assert (encoder.model_dir, encoder.max_length) == ("s3://weights/put/t5", 16)
    there = world.server.folder / "weights/put"
    assert files_below(there) == files_below(weights)
    assert call(capsys, "check", "s3://weights/put")["files"] == 9


def test_put_again_uploads_nothing_and_other_weights_are_not_replaced_unasked(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "there"
    first = call(capsys, "put", weights, target, *BASE)
    again = call(capsys, "put", weights, target, *BASE)
    state = weights / "transformer/1/mp_rank_00_model_states.pt"
    stored = torch.load(state, weights_only=True)
    next(iter(stored["module"].values())).add_(1)
    torch.save(stored, state)

    refused = call(capsys, "put", weights, target, *BASE, code=2)
    replaced = call(capsys, "put", weights, target, *BASE, "--overwrite")

    assert (len(first["uploaded"]), again["uploaded"], len(again["skipped"])) == (9, [], 9)
    assert "transformer/1/mp_rank_00_model_states.pt" in refused["err"]
    assert replaced["uploaded"] == ["transformer/1/mp_rank_00_model_states.pt"]
    assert call(capsys, "check", target)["files"] == 9


def test_check_names_the_file_that_differs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "there"
    call(capsys, "put", weights, target, *BASE)
    damaged = target / "vae/3d-vae.pt"
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)

    refused = call(capsys, "check", target, code=65)

    assert "a different sha256" in refused["err"]
    assert "vae/3d-vae.pt" in refused["err"]


def test_parts_come_out_of_zips_and_a_pipeline_folder(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("transformer", "vae"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path in sorted((weights / name).rglob("*")):
                archive.write(path, path.relative_to(weights))
    zips = (tmp_path / "transformer.zip", "--vae", tmp_path / "vae.zip", "--t5", weights / "t5")
    parts = ("--part", "pipeline", "--vae", weights / "vae/3d-vae.pt", "--t5", weights / "t5")
    words = ("convert", weights / "transformer", tmp_path / "p", "--to", "diffusers", *parts, *BASE)
    assert main([str(word) for word in words]) == 0

    from_zips = call(capsys, "put", zips[0], tmp_path / "a", *zips[1:], *BASE)
    from_pipeline = call(capsys, "put", tmp_path / "p", tmp_path / "b", *BASE)

    assert files_below(tmp_path / "a") == files_below(weights)
    assert from_zips["parts"]["vae"]["entry"] == "vae/3d-vae.pt"
    assert {n: p["entry"] for n, p in from_pipeline["parts"].items()} == {
        "transformer": "transformer",
        "vae": "vae",
        "t5": "t5",
    }
    assert from_pipeline["parts"]["transformer"]["layout"] == "diffusers"
    assert (tmp_path / "b/t5/text_encoder/config.json").is_file()


def _cut_t5(weights: Path) -> None:
    config = weights / "t5/config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "num_layers": content["num_layers"] + 1}))


def _cut_vae(weights: Path) -> None:
    path = weights / "vae/3d-vae.pt"
    stored = torch.load(path, weights_only=True)
    state = stored.get("state_dict", stored)
    del state["decoder.mid.block_1.conv1.conv.weight"]
    torch.save(stored, path)


def _bad_zip(weights: Path) -> None:
    with zipfile.ZipFile(weights / "bad.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")


@pytest.mark.parametrize(
    ("damage", "source", "says"),
    [
        (_cut_t5, "", "missing or of the wrong shape, 0 unexpected"),
        (_cut_vae, "", "decoder.mid.block_1.conv1.conv.weight"),
        (_bad_zip, "bad.zip", "points outside it"),
    ],
)
def test_a_part_that_is_not_whole_is_refused_before_anything_is_uploaded(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Any,
    source: str,
    says: str,
) -> None:
    damage(weights)

    refused = call(capsys, "put", weights / source, tmp_path / "there", *BASE, code=65)

    assert says in refused["err"]
    assert not (tmp_path / "there").exists()
    assert not (tmp_path / "outside.txt").exists()


def test_a_folder_without_parts_is_an_error_that_says_how_to_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()

    refused = call(capsys, "put", tmp_path / "empty", tmp_path / "there", code=66)

    assert "--transformer, --vae, --t5" in refused["err"]
