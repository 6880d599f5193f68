from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.config.schema.data import (
    DataConfig,
    OrderConfig,
    QuarantineConfig,
    SFTDataConfig,
    ShardDataConfig,
)
from app.config.schema.run import CompatConfig
from app.data.opening import LoaderRequest, open_loader
from app.data.order.orders import SatOrder
from app.data.order.share import Share
from app.data.pack import PackRules, pack
from app.errors import ConfigError, DataError
from tests.support.clip_files import write_folder

SFT = SFTDataConfig(video_size=(32, 48), fps=8.0, max_num_frames=9, skip_frms_num=3.0)
SHARDS = ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8.0, skip_frms_num=3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("in"), {f"c{i}": f"caption {i}" for i in range(6)})


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    pack(str(folder), str(folder / "shards"), PackRules(shard_bytes=9000))
    return folder / "shards"


def config(params: object = SFT, **changes: object) -> DataConfig:
    plain = DataConfig(
        target="t",
        implementation="m:C",
        params=params,
        num_workers=2,  # type: ignore[arg-type]
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def request(*paths: Path, **changes: object) -> LoaderRequest:
    plain = LoaderRequest(paths=[str(path) for path in paths], share=Share(0, 1, 2), seed=3)
    return replace(plain, **changes)  # type: ignore[arg-type]


def captions(configuration: DataConfig, loader_request: LoaderRequest, steps: int) -> list[str]:
    with open_loader(configuration, loader_request) as loader:
        return [text for batch in loader.batches(0, steps) for text in batch["txt"]]


def test_a_folder_gives_every_clip_once_per_epoch(folder: Path) -> None:
    found = captions(config(), request(folder), steps=3)

    assert sorted(found) == [f"caption {i}" for i in range(6)]


def test_shards_give_every_clip_once_per_epoch(shards: Path) -> None:
    found = captions(config(SHARDS, order=OrderConfig(window=2)), request(shards), steps=3)

    assert sorted(found) == [f"caption {i}" for i in range(6)]


def test_two_paths_without_weights_are_one_epoch(folder: Path) -> None:
    found = captions(config(), request(folder, folder), steps=6)

    assert sorted(found) == sorted([f"caption {i}" for i in range(6)] * 2)


def test_weights_repeat_a_dataset(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path, {"x": "other"})
    loader_request = request(folder, other, weights=(1, 6))

    with open_loader(config(), loader_request) as loader:
        cursor = loader.cursor(0)

    assert cursor.shares == (500, 500)  # 6 samples once, 1 sample six times


def test_a_weight_too_many_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="2 weights for 1 datasets"):
        open_loader(config(), request(folder, weights=(1, 2)))


def test_upstream_order_under_compat_sat(folder: Path) -> None:
    compat = CompatConfig(mode="sat", order="sat", frame_rule="sat")
    share = Share(1, 2, 2, 2)

    with open_loader(config(), request(folder, compat=compat, share=share)) as loader:
        first, second = (batch["keys"] for batch in loader.batches(0, 1))
        cursor = loader.cursor(5)

    upstream = SatOrder([6])
    assert first == [f"videos/c{upstream.index(p)}.mp4" for p in (2, 3)]
    assert second == [f"videos/c{upstream.index(p)}.mp4" for p in (6, 7)]
    assert cursor.order == "sat"
    cursor.check_continues(replace(cursor, t=0))


def test_another_dataset_is_another_cursor(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path, {"x": "other"})
    with open_loader(config(), request(folder)) as loader:
        old = loader.cursor(4)
    with open_loader(config(), request(other, share=Share(0, 1, 2))) as loader:
        new = replace(loader.cursor(0), lanes=old.lanes)

    with pytest.raises(DataError, match="fingerprint"):
        old.check_continues(new)


class Mine:
    """A user's dataset."""

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, size: int) -> list[dict]:
        return [
            {"mp4": torch.zeros(1, 3, 2, 2), "txt": path, "num_frames": 1, "fps": args.fps}
        ] * size


def test_a_registered_class_is_created_as_upstream_does() -> None:
    mine = config({"size": 3}, implementation=f"{__name__}:Mine")

    found = captions(mine, request(Path("here"), args=Namespace(fps=8)), steps=2)

    assert found == ["here"] * 4


def test_parameters_that_a_registered_class_does_not_take_are_named() -> None:
    mine = config({"size": 3, "fps": 8}, implementation=f"{__name__}:Mine")

    with pytest.raises(ConfigError, match="unexpected keyword argument 'fps'") as caught:
        open_loader(mine, request(Path("here")))

    assert "accept **params" in caught.value.fix


@pytest.mark.parametrize("content", ["import nowhere", "def (", "1 / 0"])
def test_a_class_that_cannot_be_imported_is_a_configuration_error(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_user.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigError, match=r"of_a_user:Data cannot be imported: \w+Error"):
        open_loader(config({}, implementation="of_a_user:Data"), request(Path("x")))


def test_a_class_without_the_seam_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="create_dataset_function"):
        open_loader(config({}, implementation="collections:Counter"), request(Path("x")))


def test_no_path_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no data"):
        open_loader(config(), request())


def test_a_function_of_the_caller_replaces_the_class(folder: Path) -> None:
    def create(path: str, args: object) -> list[dict[str, object]]:
        return [{"mp4": torch.zeros(1), "txt": "made", "num_frames": 1, "fps": 8}] * 2

    assert captions(config(), request(folder, create=create), steps=1) == ["made", "made"]


@pytest.mark.parametrize("params", [SFT, SHARDS])
@pytest.mark.parametrize("blank", [" ", "\n"])
def test_a_blank_behind_an_address_is_a_mistake_that_names_the_argument(
    params: object, blank: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match="begins or ends with a blank") as caught:
        open_loader(config(params), replace(request(folder), paths=[f"{folder}{blank}"]))

    assert "args.train_data" in caught.value.where
    assert caught.value.exit_code == 78


def test_a_trigger_word_is_in_every_batch(folder: Path, shards: Path) -> None:
    for params, place in ((SFT, folder), (SHARDS, shards)):
        found = captions(config(params, caption_prefix="sks"), request(place), 3)

        assert sorted(found) == [f"sks caption {n}" for n in range(6)]


def test_too_many_unusable_names_stop_the_start(folder: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b\\c.mp4"):
        for kind, end in (("videos", "mp4"), ("labels", "txt")):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / name.replace("mp4", end)).write_bytes(b"words")
    strict = config(quarantine=QuarantineConfig(after_samples=2))

    with pytest.raises(DataError, match="1 of 2 videos are left out: unusable_name 1"):
        open_loader(strict, request(tmp_path))
