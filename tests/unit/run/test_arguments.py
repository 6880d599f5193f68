"""get_args: parse, join, seed; parsing alone touches nothing."""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from app.config.arguments.table import ARGUMENTS
from app.errors import ConfigError, UsageError
from app.run.arguments import (
    Section,
    as_section,
    get_args,
    leave_distributed,
    parse_args,
    process_config_to_args,
)
from tests.support.configs import ROOT, TINY, base

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*RANK_VARIABLES, "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    leave_distributed()
    os.environ.clear()
    os.environ.update(before)


def test_namespace_has_every_argument_and_every_section() -> None:
    args = parse_args([*TINY, "--lr", "3e-4"])

    assert set(ARGUMENTS) <= set(vars(args))
    assert args.lr == 3e-4
    assert args.deepspeed is True
    assert args.deepspeed_config["optimizer"]["params"]["lr"] == 3e-4
    assert args.model_config.network_config.params.num_layers == 2
    assert args.data_config.target == "data_video.VideoDataset"
    assert (args.rank, args.world_size, args.local_rank) == (0, 1, 0)
    assert args.run_config.run_id == "tiny"


def test_sections_that_are_missing_stay_unset() -> None:
    args = parse_args(base("cogvideox_2b", "inference"))

    assert args.deepspeed is False
    assert args.deepspeed_config is None
    assert not hasattr(args, "data_config")
    assert not hasattr(args, "deepspeed_activation_checkpointing")


def test_parsing_does_not_import_torch() -> None:
    code = (
        "import sys; from app.run.arguments import parse_args; "
        f"parse_args({TINY!r}); sys.exit('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)

    assert done.returncode == 0


def test_parsing_starts_and_seeds_nothing() -> None:
    random.seed(3)
    torch.manual_seed(3)
    states = (random.getstate(), torch.get_rng_state())
    environment = dict(os.environ)

    parse_args(TINY)

    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert dict(os.environ) == environment
    assert not dist.is_initialized()


def test_get_args_joins_and_seeds() -> None:
    args = get_args([*TINY, "--seed", "42"])
    drawn = torch.rand(3)

    assert dist.is_initialized()
    assert dist.get_world_size() == 1
    assert args.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(42)
    assert torch.equal(drawn, torch.rand(3))
    assert args.seed == 42


def test_get_args_twice_joins_once() -> None:
    first = get_args(TINY)
    second = get_args([*TINY, "--lr", "1e-5"])

    assert (first.lr, second.lr) == (2e-3, 1e-5)
    assert dist.is_initialized()


def test_options_of_the_callers_own_parser_are_kept() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mine", type=int, default=1)
    parser.add_argument("--other", default="x")

    args = parse_args([*TINY, "--mine", "5", "args.lr=1e-5"], parser)

    assert (args.mine, args.other, args.lr) == (5, "x", 1e-5)


def test_words_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_video.py", *TINY, "--seed", "5"])

    assert parse_args().seed == 5


@pytest.mark.parametrize("flag", ["--local-rank", "--device"])
def test_contradiction_with_the_environment_is_a_mistake(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert parse_args([*TINY, flag, "1"]).local_rank == 1
    with pytest.raises(ConfigError, match="but this process has local rank 1") as caught:
        parse_args([*TINY, flag, "0"])
    assert caught.value.exit_code == 78


def test_seed_stays_the_base_seed_but_under_compat_sat(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.run.arguments import seed_from

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    default, sat = parse_args(TINY), parse_args([*TINY, "--compat", "sat"])

    seed_from(default)
    seed_from(sat)

    assert (default.seed, sat.seed) == (1234, 1235)


def test_process_config_fills_a_namespace_in_place() -> None:
    args = argparse.Namespace(base=TINY[1:], lr=3e-4, seed=1234, own=7)

    returned = process_config_to_args(args)

    assert returned is args
    assert (args.lr, args.train_iters, args.own) == (3e-4, 60, 7)
    assert args.model_config.scale_factor == 1.0


def test_process_config_lets_the_files_win_under_compat_sat() -> None:
    args = argparse.Namespace(base=TINY[1:], lr=3e-4, compat="sat", sampling_image_size=[480, 720])

    process_config_to_args(args)

    assert args.lr == 2e-3
    assert args.sampling_image_size == [480, 720]


def test_wrong_flag_leaves_with_2() -> None:
    with pytest.raises(UsageError) as caught:
        get_args([*TINY, "--no-such-flag"])

    assert caught.value.exit_code == 2
    assert not dist.is_initialized()


def test_keys_are_attributes_at_every_depth() -> None:
    section = as_section({"a": {"b": [{"c": 1}]}})

    assert section.a.b[0].c == 1
    section.a.d = 2
    del section.a.b
    assert section == {"a": {"d": 2}}


def test_missing_key_is_an_attribute_error() -> None:
    section = as_section({})

    with pytest.raises(AttributeError):
        _ = section.nothing
    with pytest.raises(AttributeError):
        del section.nothing
    assert not hasattr(section, "nothing")


def test_it_stays_a_dict_for_everyone_else() -> None:
    section = as_section({"a": {"b": 1}})

    assert json.loads(json.dumps(section)) == {"a": {"b": 1}}
    for copied in (copy.deepcopy(section), pickle.loads(pickle.dumps(section))):
        assert copied == section
        assert isinstance(copied.a, Section)
