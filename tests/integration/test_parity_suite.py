"""The parity suite itself: red where a recorded number is wrong, missing, or read by no one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.parity_cases import (
    write_guidance_case,
    write_sampler_case,
    write_vae_export_case,
)
from tests.support.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "golden"
# What the original computed, by the names in the files; the rest is what it was given.
RESULTS = re.compile(
    r"(^|/)((sat_)?output(_\w+)?|loss(_per_sample|_weight_all)?|denoised|x_out|normalized)$"
    r"|(^|/)grad/|^(final|merged|exported|decode|diffusers)|moments\d*$|^sat_decode"
)
ONE_OF_EACH = (
    "01b_dit_2b_like_v10",
    "06_schedule",
    "07e_loss_5b_ucg",
    "08b_sampler_ddim_5b",
    "09b_vae_v10",
    "10_frames",
    "14_lora_export",
)


def parity(folder: Path, *modules: str, only: str = "") -> dict[str, bool]:
    """Run tests/parity, or some of it, on a directory: id of each test -> passed.

    Args:
        modules: of tests/parity; none: all.
        only: what pytest's -k takes.
    """
    report = folder.parent / f"{folder.name}.xml"
    environment = os.environ | {"COGVX_GOLDEN": str(folder)}
    paths = [f"tests/parity/{module}.py" for module in modules] or ["tests/parity"]
    command = ["-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", "-k", only]
    done = subprocess.run(
        warm_python(*command, f"--junitxml={report}"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    return {
        f"{test.get('classname')}::{test.get('name')}": test.find("failure") is None
        and test.find("error") is None
        for test in ElementTree.parse(report).iter("testcase")
    }


def copied(names: tuple[str, ...], folder: Path) -> Path:
    """A directory with these cases and those whose weights they use."""
    folder.mkdir()
    wanted = set(names)
    for name in names:
        wanted.add(json.loads((RECORDED / f"{name}.json").read_text()).get("weights_from", name))
    for name in wanted:
        for path in RECORDED.glob(f"{name}.*"):
            shutil.copy(path, folder)
    return folder


def change_results(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> int:
    """Change what the original computed in one case; returns how many values were changed."""
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    moved = [key for key, value in tensors.items() if RESULTS.search(key) and value.any()]
    save_file(tensors | {key: change(tensors[key]) for key in moved}, path)
    return len(moved)


def moved_by_one_percent(value: Tensor) -> Tensor:
    moved = value.double() * 1.01
    return moved.to(value.dtype) if value.is_floating_point() else moved.ceil().to(value.dtype)


def move_learning_rates(folder: Path) -> None:
    """The case of learning rates has no tensors: its numbers are in the JSON."""
    path = folder / "11_lr_schedule.json"
    case = json.loads(path.read_text())
    for row in case["rows"]:
        for name, value in row.items():
            if name.startswith("lr_used"):
                row[name] = (np.asarray(value) * 1.01).tolist()
    path.write_text(json.dumps(case))


def assert_red(folder: Path, names: tuple[str, ...]) -> None:
    """Each case, moved by 1%, has a failing test; so has the case of learning rates."""
    move_learning_rates(folder)
    for name in names:
        assert change_results(folder, name, moved_by_one_percent), f"nothing to move in {name}"
    passed = parity(folder)
    for name in names:
        own = [ok for test, ok in passed.items() if name in test and "a_runner_claims" not in test]
        assert own, f"no test of {name}"
        assert not all(own), f"{name} is green although its results are off by 1%"
    assert not all(ok for test, ok in passed.items() if "test_lr_schedule" in test)


def test_results_off_by_one_percent_are_red_for_a_case_of_each_kind(tmp_path: Path) -> None:
    assert_red(copied((*ONE_OF_EACH, "11_lr_schedule"), tmp_path / "moved"), ONE_OF_EACH)


@pytest.mark.slow
def test_results_off_by_one_percent_are_red_for_every_case(tmp_path: Path) -> None:
    names = tuple(path.stem for path in RECORDED.glob("*.safetensors"))
    assert_red(copied((*names, "11_lr_schedule"), tmp_path / "moved"), names)


def test_an_empty_directory_is_red(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not all(parity(tmp_path / "empty", "test_discovery").values())


def test_an_item_without_a_runner_and_a_tensor_that_no_one_reads_are_red(tmp_path: Path) -> None:
    folder = copied(("06_schedule", "10_frames"), tmp_path / "odd")
    path = folder / "06_schedule.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"item": "99 something new"}))
    frames = folder / "10_frames.safetensors"
    save_file(load_file(frames) | {"left_over": torch.ones(1)}, frames)
    passed = parity(folder, "test_discovery", "test_frames")
    red = [test for test, ok in passed.items() if not ok]
    assert any("a_runner_claims" in test and "06_schedule" in test for test in red), red
    assert any("10_frames" in test and "a_runner_claims" not in test for test in red), red


def test_tensors_without_a_case_and_a_case_without_its_tensors_are_red(tmp_path: Path) -> None:
    orphan = copied(("06_schedule", "11_lr_schedule"), tmp_path / "orphan")
    (orphan / "06_schedule.json").unlink()
    bare = copied(("10_frames",), tmp_path / "bare")
    (bare / "10_frames.safetensors").unlink()

    assert not all(parity(orphan, "test_discovery").values())
    assert not all(parity(bare, "test_frames").values())


@pytest.fixture(scope="module")
def other_forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Each test of the suite on cases of forms that tests/golden lacks: id -> passed."""
    folder = tmp_path_factory.mktemp("forms") / "cases"
    write_guidance_case(folder)
    write_sampler_case(folder, "08_with_ofs", "04b_dit_1p5_i2v_like", ofs=1.25)
    write_sampler_case(folder, "08_with_prefix", "02_dit_5b_like", fixed_frames=2)
    write_vae_export_case(folder)
    modules = ("test_samplers", "test_schedule", "test_vae")
    return parity(folder, *modules, only="06_ or 08_ or 14_")


@pytest.mark.parametrize("name", ["06_other_steps", "08_with_ofs", "08_with_prefix", "14_own_clip"])
def test_cases_of_other_forms_are_run_and_agree(other_forms: dict[str, bool], name: str) -> None:
    own = {test: ok for test, ok in other_forms.items() if name in test}
    assert own
    assert all(own.values()), own


def test_a_case_of_another_form_that_is_off_by_one_percent_is_red(tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    write_sampler_case(folder, "08_with_prefix", "02_dit_5b_like", fixed_frames=2)
    path = folder / "08_with_prefix.safetensors"
    tensors = load_file(path)
    last = "step2/x_out"
    save_file(tensors | {last: moved_by_one_percent(tensors[last])}, path)

    passed = parity(folder, "test_samplers", only="08_")

    assert not all(ok for test, ok in passed.items() if "08_with_prefix" in test)
