from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from app.checkpoint import writer
from app.checkpoint.catalog import find_newest
from app.checkpoint.fragments import ParameterInfo
from app.checkpoint.layout import CheckpointRef
from app.checkpoint.reader import open_checkpoint
from app.checkpoint.rng import capture_rng, restore_rng
from app.checkpoint.train_state import TrainState
from app.checkpoint.writer import Snapshot, save_checkpoint
from app.errors import CheckpointError, CogvxError, RetryableError
from app.storage.local import LocalStorage
from app.storage.objects import Receipt, Storage
from tests.support.checkpoints import (
    PARAMETERS,
    fragments_of,
    identity_of,
    made_up_values,
    read_back,
    same_bits,
    save,
)
from tests.support.ranks import ThreadExchange, run_ranks


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def newest(storage: Storage) -> CheckpointRef:
    ref = find_newest(storage)
    assert ref is not None
    return ref


@pytest.mark.parametrize("saved_at", [1, 2, 3])
@pytest.mark.parametrize("read_at", [1, 2, 4])
def test_values_are_equal_at_any_layout(
    storage: LocalStorage, tmp_path: Path, saved_at: int, read_at: int
) -> None:
    values = made_up_values(7)

    names = save(storage, tmp_path / "s", step=3, world_size=saved_at, values=values)

    assert names == ["step-0000000003.000001"] + [None] * (saved_at - 1)
    with open_checkpoint(storage, newest(storage)) as checkpoint:
        assert same_bits(read_back(checkpoint, read_at), values)


def test_any_range_of_a_parameter_is_read(storage: LocalStorage, tmp_path: Path) -> None:
    values = made_up_values(7)
    save(storage, tmp_path / "s", step=3, world_size=3, values=values)
    whole = values["blocks.0.attention.q.weight", "exp_avg"]

    with open_checkpoint(storage, newest(storage)) as checkpoint:
        for start, numel in ((0, 1), (100, 0), (170, 800), (1087, 1)):
            read = checkpoint.read("blocks.0.attention.q.weight", "exp_avg", start, numel)
            assert read.tolist() == whole[start : start + numel].tolist()
        shaped = checkpoint.read_whole("blocks.10.mlp.up.weight", "ema")
    assert shaped.tolist() == values["blocks.10.mlp.up.weight", "ema"].view(33, 7).tolist()


def test_bf16_weights_are_the_master_weights_cast(storage: LocalStorage, tmp_path: Path) -> None:
    weight = torch.randn(17, generator=torch.Generator().manual_seed(0)).bfloat16()
    values = made_up_values(7)
    values["blocks.0.attention.q.bias", "master"] = weight.float()

    save(storage, tmp_path / "s", step=3, world_size=2, values=values)

    with open_checkpoint(storage, newest(storage)) as checkpoint:
        read = checkpoint.read_whole("blocks.0.attention.q.bias")
    assert read.bfloat16().view(torch.int16).tolist() == weight.view(torch.int16).tolist()


def test_the_folder_holds_what_the_layout_says(storage: LocalStorage, tmp_path: Path) -> None:
    save(storage, tmp_path / "s", step=1000, attempt=7, world_size=2, rng={"x": 1})

    keys = [entry.key for entry in storage.list()]

    folder = "checkpoints/step-0000001000.000007"
    assert keys == [
        f"{folder}/manifest.json",
        f"{folder}/optim-00000-of-00002.safetensors",
        f"{folder}/optim-00001-of-00002.safetensors",
        f"{folder}/rng-0000.json",
        f"{folder}/rng-0001.json",
        f"{folder}/state.json",
        f"{folder}/weights-00000-of-00002.safetensors",
        f"{folder}/weights-00001-of-00002.safetensors",
    ]


def test_the_scratch_folder_is_empty_afterwards(storage: LocalStorage, tmp_path: Path) -> None:
    save(storage, tmp_path / "s", step=3, world_size=2)

    assert list((tmp_path / "s").iterdir()) == []


def test_files_are_cut_between_pieces(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_LIMIT_BYTES", 1000)
    values = made_up_values(7)

    save(storage, tmp_path / "s", step=3, world_size=2, values=values)

    ref = newest(storage)
    names = [entry.key.rpartition("/")[2] for entry in storage.list(f"{ref.folder}/weights-00001")]
    assert names == [
        "weights-00001-of-00002-001.safetensors",
        "weights-00001-of-00002-002.safetensors",
        "weights-00001-of-00002-003.safetensors",
        "weights-00001-of-00002.safetensors",
    ]
    with open_checkpoint(storage, ref) as checkpoint:
        assert same_bits(read_back(checkpoint, 3), values)


def test_state_and_generators_come_back(storage: LocalStorage, tmp_path: Path) -> None:
    state = TrainState(
        step=12,
        micro_step=24,
        adam_step={"0": 12, "1": 11},
        cursor={"t": 12, "quarantined": [["a.tar", "k"]]},
        seed=2**63,
        loss_scale={"cur_scale": 65536.0},
        ema_step=3,
        best={"loss": 0.25, "step": 10},
    )
    snapshot = Snapshot(
        fragments=fragments_of(made_up_values(1), 0, 1),
        parameters=PARAMETERS,
        state=state,
        rng=capture_rng(),
    )
    drawn = (random.random(), float(np.random.rand()), torch.rand(3).tolist())

    def one(exchange: ThreadExchange) -> str | None:
        return save_checkpoint(storage, identity_of(12, 1), snapshot, exchange, tmp_path / "s")

    assert run_ranks(1, one) == ["step-0000000012.000001"]

    with open_checkpoint(storage, newest(storage)) as checkpoint:
        assert checkpoint.state == state
        rng = checkpoint.rng(0)
        assert checkpoint.rng(1) is None
    assert rng is not None
    restore_rng(rng, "rng-0000.json")
    assert (random.random(), float(np.random.rand()), torch.rand(3).tolist()) == drawn


def test_damaged_generator_states_are_refused() -> None:
    state = capture_rng()

    changes: list[dict[str, object]] = [
        {"torch": "AAAA"},
        {"python": {}},
        {"numpy": {**state["numpy"], "keys": "AA=="}},
    ]
    for change in changes:
        with pytest.raises(CheckpointError, match=r"rng-0003\.json"):
            restore_rng({**state, **change}, "rng-0003.json")


def test_a_checkpoint_without_moments_can_be_read(storage: LocalStorage, tmp_path: Path) -> None:
    values = made_up_values(7, ("master",))

    save(storage, tmp_path / "s", step=3, world_size=2, values=values)

    with open_checkpoint(storage, newest(storage)) as checkpoint:
        assert checkpoint.manifest.parameters["scale"].kinds == ("master",)
        assert same_bits(read_back(checkpoint, 2), values)
        with pytest.raises(CheckpointError, match=r"exp_avg of 'scale' is not stored"):
            checkpoint.read("scale", "exp_avg", 0, 1)


def test_a_second_save_of_a_step_changes_nothing(storage: LocalStorage, tmp_path: Path) -> None:
    save(storage, tmp_path / "s", step=3, world_size=2, values=made_up_values(1))
    before = {entry.key: storage.read_small(entry.key) for entry in storage.list()}

    again = save(storage, tmp_path / "s", step=3, world_size=2, values=made_up_values(2))

    assert again == ["step-0000000003.000001", None]
    assert {entry.key: storage.read_small(entry.key) for entry in storage.list()} == before


@pytest.mark.parametrize("name", ["weights-00001-of-00002.safetensors", "state.json"])
def test_a_flipped_byte_is_refused_with_the_name_of_the_file(
    storage: LocalStorage, tmp_path: Path, name: str
) -> None:
    save(storage, tmp_path / "s", step=3, world_size=2)
    ref = newest(storage)
    path = tmp_path / "run" / ref.file(name)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)

    with open_checkpoint(storage, ref) as checkpoint:
        read = {"state.json": lambda: checkpoint.state}.get(name, lambda: read_back(checkpoint, 1))
        with pytest.raises(CheckpointError, match=name) as caught:
            read()

    assert caught.value.exit_code == 65
    assert "sha256" in caught.value.what


def test_parameters_of_another_model_are_refused(storage: LocalStorage, tmp_path: Path) -> None:
    save(storage, tmp_path / "s", step=3)
    cases = {
        "lacks 'new'": {**PARAMETERS, "new": ParameterInfo((2,), 0)},
        "has 'scale' in addition": {n: p for n, p in PARAMETERS.items() if n != "scale"},
        r"scale has shape \(\), the run needs \(1,\)": {
            **PARAMETERS,
            "scale": ParameterInfo((1,), 1),
        },
    }

    with open_checkpoint(storage, newest(storage)) as checkpoint:
        checkpoint.check_parameters(PARAMETERS)
        for message, expected in cases.items():
            with pytest.raises(CheckpointError, match=message):
                checkpoint.check_parameters(expected)


@pytest.mark.parametrize("kind", ["master", "exp_avg_sq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_never_published(
    kind: str, value: float, storage: LocalStorage, tmp_path: Path
) -> None:
    save(storage, tmp_path / "s", step=3)
    values = made_up_values(1)
    values["blocks.10.mlp.up.weight", kind][-1] = value  # of the last rank

    results = save(storage, tmp_path / "s", step=6, world_size=2, values=values)

    assert isinstance(results[0], CheckpointError)
    assert "1 parameters hold NaN or infinity" in results[0].what
    assert "blocks.10.mlp.up.weight" in results[0].what
    assert newest(storage).step == 3


class FailingStorage(LocalStorage):
    """Refuses to take the files of one rank."""

    def upload(self, path: Path, key: str) -> Receipt:
        if "00001-of-00002" in key:
            raise RetryableError("the disk is gone", where=key, fix="wait")
        return super().upload(path, key)


def test_a_rank_that_fails_leaves_no_manifest(tmp_path: Path) -> None:
    storage = FailingStorage(tmp_path / "run")

    results = save(storage, tmp_path / "s", step=3, world_size=2)

    assert all(isinstance(result, RetryableError) for result in results)
    assert "rank 1 could not write its files: the disk is gone" in str(results[0])
    assert find_newest(storage) is None


class SilentlyCuttingStorage(LocalStorage):
    """Reports whole uploads and keeps a part of them."""

    def upload(self, path: Path, key: str) -> Receipt:
        receipt = super().upload(path, key)
        if "optim" in key:
            kept = self._path(key).read_bytes()[:-1]
            self._path(key).write_bytes(kept)
        return receipt


def test_a_file_that_lies_there_shorter_is_found_before_publishing(tmp_path: Path) -> None:
    storage = SilentlyCuttingStorage(tmp_path / "run")

    [result] = save(storage, tmp_path / "s", step=3)

    assert isinstance(result, CheckpointError)
    assert "optim-00000-of-00001.safetensors" in str(result)
    assert find_newest(storage) is None


class OverwrittenStorage(LocalStorage):
    """Another process writes its own manifest over ours as soon as it is there."""

    def write_small(self, key: str, data: bytes) -> None:
        super().write_small(key, data)
        if key.endswith("manifest.json"):
            super().write_small(key, data.replace(b"3f9c2a1b", b"00000000"))


def test_a_manifest_that_comes_back_changed_is_an_error(tmp_path: Path) -> None:
    storage = OverwrittenStorage(tmp_path / "run")

    [result] = save(storage, tmp_path / "s", step=3)

    assert isinstance(result, CheckpointError)
    assert result.what == "the manifest differs when it is read back"
    assert result.where.endswith("step-0000000003.000001/manifest.json")


def test_a_hole_between_fragments_is_found_before_publishing(
    storage: LocalStorage, tmp_path: Path
) -> None:
    values = made_up_values(1)

    def one(exchange: ThreadExchange) -> str | None:
        fragments = list(fragments_of(values, exchange.rank, 2))
        snapshot = Snapshot(
            fragments=fragments[4:] if exchange.rank else fragments,
            parameters=PARAMETERS,
            state=None,
        )
        return save_checkpoint(storage, identity_of(3, 1), snapshot, exchange, tmp_path / "s")

    results = run_ranks(2, one)

    assert isinstance(results[0], CogvxError)
    assert "blocks.0.attention.q.weight in weights-*: fragments end at 362" in str(results[0])
    assert find_newest(storage) is None
