"""Checkpoints of a run: what is saved, what a start puts back, what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.checkpoint.catalog import complete_checkpoints, find_newest
from app.checkpoint.fragments import Fragment, ParameterInfo
from app.checkpoint.reader import open_checkpoint
from app.data.loader import Loader
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.distributed.groups import ProcessGroups
from app.errors import CheckpointError, ConfigError, DataError
from app.run.attempt.folder import RunFolder
from app.run.attempt.saving import Saver, restore
from app.storage.local import LocalStorage
from app.training.loop import LoopState
from tests.support.checkpoints import PARAMETERS, SHAPES, Values, fragments_of, made_up_values
from tests.support.configs import TINY, load_trainable, path_of
from tests.support.numbered_clips import NumberedClips
from tests.unit.run.folders import run_folder

KINDS = ("master", "exp_avg", "exp_avg_sq")


@dataclass
class MemoryEngine:
    """Holds values instead of training them."""

    values: Values = field(default_factory=dict)
    restored: dict[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, ParameterInfo] = field(default_factory=lambda: PARAMETERS)
    average: Any = None

    def fragments(self) -> Iterator[Fragment]:
        return fragments_of(self.values, 0, 1, KINDS)

    def parameters_info(self) -> Mapping[str, ParameterInfo]:
        return self.parameters

    def adam_steps(self) -> dict[str, int]:
        return {"0": 4, "1": 4}

    def loss_scale(self) -> dict[str, float] | None:
        return {"cur_scale": 128.0}

    def restore(
        self, read: Callable[[str, str, int, int], Tensor], adam_steps: Any, **rest: Any
    ) -> None:
        for name, shape in SHAPES.items():
            for kind in KINDS:
                numel = torch.Size(shape).numel()
                self.values[name, kind] = read(name, kind, 0, numel).clone()
        self.restored = {"adam_steps": adam_steps, **rest}


Build = Callable[..., Saver]


@pytest.fixture
def saver(groups: ProcessGroups, tmp_path: Path) -> Iterator[Build]:
    """Makes the saver of one attempt; words change the configuration."""
    loaders: list[Loader] = []

    def build(*words: str, run: RunFolder | None = None, clips: int = 20, batch: int = 2) -> Saver:
        config = load_trainable(*TINY, *words)
        request = LoaderRequest(
            paths=["clips"],
            share=Share(0, 1, batch),
            seed=config.training.seed,
            compat=config.compat,
            create=lambda path, args: NumberedClips(path, clips),
        )
        loaders.append(open_loader(config.data, request))
        folder = run or run_folder(tmp_path / "run")
        engine: Any = MemoryEngine(made_up_values(1, KINDS))
        return Saver(config, folder, groups, engine, loaders[-1], tmp_path / "scratch")

    (tmp_path / "scratch").mkdir()
    yield build
    for loader in loaders:
        loader.close()


def again(tmp_path: Path, attempt: int = 2) -> RunFolder:
    """The next start's folder."""
    newest = find_newest(LocalStorage(tmp_path / "run"))
    assert newest is not None
    return run_folder(tmp_path / "run", attempt=attempt, newest=newest)


def test_a_run_without_a_checkpoint_starts_at_step_0(saver: Build) -> None:
    made = saver()

    state, stored = restore(made)

    assert state == LoopState()
    assert stored is None


def test_what_was_saved_is_put_back_to_the_last_bit(saver: Build, tmp_path: Path) -> None:
    first = saver()
    first.wandb_run_id = lambda: "w1"
    first.best = {"valid_loss": 0.5, "step": 3}
    first.save(LoopState(step=4, skipped_steps=1))

    second = saver(run=again(tmp_path))
    engine: Any = second.engine
    engine.values = {}
    state, stored = restore(second)

    assert state == LoopState(step=4, skipped_steps=1)
    assert stored is not None
    assert (stored.wandb_run_id, stored.seed, stored.micro_step) == ("w1", 1234, 8)
    assert second.best == {"valid_loss": 0.5, "step": 3}
    expected = made_up_values(1, KINDS)
    assert engine.values.keys() == expected.keys()
    assert all(torch.equal(engine.values[key], expected[key]) for key in expected)
    assert engine.restored == {
        "adam_steps": {"0": 4, "1": 4},
        "ema_updates": None,
        "loss_scale": {"cur_scale": 128.0},
    }


def test_a_rank_leaves_a_save_only_when_all_have_come_and_the_manifest_is_there(
    saver: Build, groups: ProcessGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path / "run")
    met: list[list[int]] = []  # steps of the complete checkpoints whenever a rank is at the barrier

    def barrier() -> None:
        met.append([ref.step for ref, _ in complete_checkpoints(storage)])

    all_ranks = SimpleNamespace(barrier=barrier)
    monkeypatch.setattr("app.run.attempt.saving.world", lambda: all_ranks)
    first, second = (
        replace(
            saver("--keep-checkpoints", "1"),
            groups=replace(groups, rank=replace(groups.rank, rank=rank, world_size=2)),
        )
        for rank in (0, 1)
    )
    owns_nothing: Any = second.engine
    owns_nothing.fragments = lambda: iter(())

    for step in (2, 4):
        second.save(LoopState(step=step))  # it waits for nobody before the barrier
        first.save(LoopState(step=step))  # takes what the second gave, publishes, meets it

    assert met == [[], [2], [2], [4, 2]]  # old checkpoints go after the barrier
    assert [ref.step for ref, _ in complete_checkpoints(storage)] == [4]


def test_the_count_of_averages_is_kept(saver: Build, tmp_path: Path) -> None:
    first = saver()
    first.engine.average = SimpleNamespace(updates=9)
    first.save(LoopState(step=4))

    second = saver(run=again(tmp_path))
    restore(second)

    engine: Any = second.engine
    assert engine.restored["ema_updates"] == 9


def test_a_checkpoint_names_the_one_before_it(saver: Build, tmp_path: Path) -> None:
    first = saver()
    first.save(LoopState(step=2))
    first.save(LoopState(step=4))
    second = saver(run=again(tmp_path))
    second.save(LoopState(step=6))

    found = complete_checkpoints(LocalStorage(tmp_path / "run"))

    assert [(ref.name, manifest.identity.parent) for ref, manifest in found] == [
        ("step-0000000006.000002", "step-0000000004.000001"),
        ("step-0000000004.000001", "step-0000000002.000001"),
        ("step-0000000002.000001", None),
    ]


@pytest.mark.parametrize(("model", "kind"), [("tiny", "full"), ("tiny_lora", "lora")])
def test_a_checkpoint_says_what_it_holds(
    model: str, kind: str, saver: Build, tmp_path: Path
) -> None:
    made = saver(path_of(f"tiny/{model}"))
    made.save(LoopState(step=2))

    ((_, manifest),) = complete_checkpoints(LocalStorage(tmp_path / "run"))
    assert manifest.identity.kind == kind
    assert manifest.identity.config_sha256 == "c" * 64
    assert manifest.identity.dataset_sha256 == made.loader.cursor(0).manifest_sha256


def test_random_states_are_put_back_unless_one_of_two_flags_forbids(
    saver: Build, tmp_path: Path
) -> None:
    def drawn() -> tuple[float, float]:
        return float(torch.rand(1)), random.random()

    torch.manual_seed(5)
    random.seed(5)
    saver().save(LoopState(step=2))
    expected = drawn()
    fresh = drawn()

    second = saver(run=again(tmp_path))
    restore(second)
    after_restore = drawn()
    torch.manual_seed(6)
    random.seed(6)
    before = drawn()
    torch.manual_seed(6)
    random.seed(6)
    restore(second, with_rng=False)

    assert after_restore == expected != fresh
    assert drawn() == before


def test_no_save_rng_leaves_the_generators_where_they_are(saver: Build, tmp_path: Path) -> None:
    saver("--no-save-rng").save(LoopState(step=2))

    with open_checkpoint(
        LocalStorage(tmp_path / "run"), again(tmp_path).newest, tmp_path / "scratch"
    ) as checkpoint:
        assert checkpoint.rng(0) is None


def test_retention_keeps_the_newest_and_the_one_that_was_resumed_from(
    saver: Build, tmp_path: Path
) -> None:
    saver().save(LoopState(step=1))
    second = saver("--keep-checkpoints", "2", run=again(tmp_path))

    for step in (2, 3, 4):
        second.save(LoopState(step=step))

    kept = [ref.step for ref, _ in complete_checkpoints(LocalStorage(tmp_path / "run"))]
    assert kept == [4, 3, 1]


def test_retention_keeps_the_checkpoint_of_the_best_validation(
    saver: Build, tmp_path: Path
) -> None:
    made = saver("--keep-checkpoints", "1")

    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, math.nan)):
        made.save(LoopState(step=step))
        made.note_validation(step, {"valid_loss": loss})
    made.save(LoopState(step=5))

    assert made.best == {"valid_loss": 0.3, "step": 2}
    kept = [ref.step for ref, _ in complete_checkpoints(LocalStorage(tmp_path / "run"))]
    assert kept == [5, 2]


@pytest.mark.parametrize(
    ("words", "changed", "error", "says"),
    [
        (["--seed", "5"], {}, ConfigError, "seed was 1234 and is now 5"),
        ([], {"batch": 4}, ConfigError, "batch was 2 and is now 4"),
        ([], {"clips": 21}, DataError, "not the data that this run was trained on"),
    ],
)
def test_another_sequence_of_samples_is_refused(
    words: list[str],
    changed: dict[str, int],
    error: type[Exception],
    says: str,
    saver: Build,
    tmp_path: Path,
) -> None:
    saver().save(LoopState(step=2))

    with pytest.raises(error, match=says):
        restore(saver(*words, run=again(tmp_path), **changed))


def test_a_checkpoint_of_other_parameters_is_refused(saver: Build, tmp_path: Path) -> None:
    saver().save(LoopState(step=2))
    second = saver(run=again(tmp_path))
    engine: Any = second.engine
    name = next(iter(PARAMETERS))
    engine.parameters = {**PARAMETERS, name: replace(PARAMETERS[name], shape=(1, 2))}

    with pytest.raises(CheckpointError, match=name):
        restore(second)
