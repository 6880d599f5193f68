from __future__ import annotations

import gzip
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from app.conversion.pickle_file import read_state_dict
from app.errors import InputMissingError, WeightsError

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}


class Poison:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def saved(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_tensors(path: Path) -> None:
    found = read_state_dict(path)
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("wrapper", ["module", "state_dict", "model"])
def test_wrapped_state_dicts_are_found(tmp_path: Path, wrapper: str) -> None:
    content = {wrapper: OrderedDict(TENSORS), "iteration": 3, "other": torch.zeros(1)}

    assert_tensors(saved(tmp_path / "w.pt", content))


@pytest.mark.parametrize("legacy", [False, True])
def test_bare_state_dicts_of_both_formats_are_read(tmp_path: Path, legacy: bool) -> None:
    assert_tensors(saved(tmp_path / "w.pt", TENSORS, legacy=legacy))


def test_random_states_of_a_training_checkpoint_are_admitted(tmp_path: Path) -> None:
    content = {
        "module": TENSORS,
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "lr_scheduler": None,
        "ds_config": {"train_batch_size": 2, "lr": 1e-3},
        "param_shapes": [OrderedDict(a=torch.Size([3]))],
    }

    assert_tensors(saved(tmp_path / "w.pt", content))


def test_numpy_state_under_its_old_module_name_is_admitted(tmp_path: Path) -> None:
    new = saved(tmp_path / "new.pt", {"module": TENSORS, "np_rng_state": np.random.get_state()})
    old = tmp_path / "old.pt"
    # numpy 2 writes numpy._core; released files were written by numpy 1. Lengths differ, so the
    # pickle is rebuilt inside the archive with the name exchanged (opcode c: text to the newline).
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
            target.writestr(item, data)

    assert set(read_state_dict(old)) == set(TENSORS)


@pytest.mark.parametrize("legacy", [False, True])
def test_poisoned_pickle_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "ran"
    path = saved(tmp_path / "w.pt", {"module": TENSORS, "x": Poison(trace)}, legacy=legacy)

    with pytest.raises(WeightsError, match="more than tensors") as error:
        read_state_dict(path)

    assert not trace.exists()
    assert "do not run code" in error.value.fix


def test_poison_behind_an_admitted_class_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    array = np.array([Poison(trace)], dtype=object)
    path = saved(tmp_path / "w.pt", {"module": TENSORS, "np_rng_state": array})

    with pytest.raises(WeightsError):
        read_state_dict(path)

    assert not trace.exists()


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"module": Poison(trace)}))

    with pytest.raises(WeightsError):
        read_state_dict(path)

    assert not trace.exists()


def test_admission_ends_with_the_call(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"module": TENSORS, "s": np.random.get_state()})
    read_state_dict(path)

    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"module": {"a": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:1500])

    with pytest.raises(WeightsError, match="not a readable torch file"):
        read_state_dict(path)


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no tensors by name"):
        read_state_dict(saved(tmp_path / "w.pt", {"module": {"step": 3}}))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        read_state_dict(tmp_path / "w.pt")


def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"module": {"a": torch.arange(1000.0)}})

    tensors = read_state_dict(path)

    assert str(path) in Path("/proc/self/maps").read_text()
    assert tensors["a"][-1] == 999


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (gzip.compress(b"weights"), "gzip"),
    ],
    ids=["pointer", "page", "gzip"],
)
def test_what_was_fetched_instead_of_weights_is_named(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match=said):
        read_state_dict(path)


def test_a_torch_file_whose_entries_were_compressed_gives_its_tensors(tmp_path: Path) -> None:
    stored, deflated = saved(tmp_path / "stored.pt", TENSORS), tmp_path / "deflated.pt"
    with (
        zipfile.ZipFile(stored) as source,
        zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))

    assert_tensors(deflated)


def test_a_zip_of_other_files_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "CogVideoX-2b-sat.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("transformer/latest", "1")

    with pytest.raises(WeightsError, match="a zip archive, not a torch file") as caught:
        read_state_dict(path)

    assert "unpack it" in caught.value.fix
