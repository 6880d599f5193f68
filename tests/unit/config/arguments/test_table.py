"""The table of arguments: each does what its disposition says, and the page is up to date."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from app.config.argument import Argument, Disposition, arguments_of
from app.config.arguments.data import SAMPLING
from app.config.arguments.page import as_records, with_table
from app.config.arguments.table import ARGUMENTS
from app.config.command_line import make_parser
from app.config.schema.run import CompatConfig, RunConfig
from app.errors import ConfigError
from tests.support.configs import ROOT, TINY, base, load, mistakes

# Values that differ from the built-in default and from the recipe of the tests.
OTHER_VALUE: dict[str, list[str]] = {
    "experiment_name": ["other"],
    "mode": ["pretrain"],
    "lr_decay_style": ["cosine"],
    "distributed_backend": ["nccl"],
    "precedence": ["yaml"],
    "compat": ["sat"],
    "train_data": ["other"],
    "valid_data": ["other"],
    "train_data_weights": ["3"],
    "epochs": ["3", "args.train_iters=null"],
    "zero_stage": ["1"],
    "fp16": ["true"],
    "bf16": ["true"],
    "warmup": ["0.2"],
    "lr_decay_ratio": ["0.2"],
    "log_image": ["false"],
    "checkpoint_activations": ["false"],
    "save": ["elsewhere"],
    "load": ["weights"],
    "summary_dir": ["elsewhere"],
    "wandb_project_name": ["other"],
    "run_id": ["other"],
    "model_parallel_size": ["2"],
}
# argument -> (field of CompatConfig, our value, upstream's)
SWITCHES = {
    row.name: (name, *row.kind.choices)
    for name, row in arguments_of(CompatConfig)
    if name != "mode"
}
# Read before there is a configuration, or by the command that starts processes. Those of sampling
# are read by `cogvx sample` alone.
NOT_IN_THE_CONFIGURATION = ("base", "deepspeed_config", "register", "local_rank", "nproc_per_node")
EFFECTIVE = [
    argument
    for argument in ARGUMENTS.values()
    if argument.disposition in (Disposition.WORKS, Disposition.MAPPED)
    and argument.name not in NOT_IN_THE_CONFIGURATION
    and argument.group != SAMPLING
]


def words_of(argument: Argument) -> list[str]:
    """A flag that asks for something else than the default."""
    if argument.name in OTHER_VALUE:
        return [argument.flag, *OTHER_VALUE[argument.name]]
    if argument.name in SWITCHES:
        return [argument.flag, SWITCHES[argument.name][2]]
    return [argument.flag, "true" if argument.is_switch else "7"]


def effect(config: RunConfig) -> dict[str, Any]:
    """What the product reads: the typed parts, without the record of arguments."""
    return {
        name: getattr(config, name) for name in ("run_id", "compat", "model", "data", "training")
    }


@pytest.mark.parametrize("argument", EFFECTIVE, ids=lambda argument: str(argument.name))
def test_argument_changes_the_configuration(argument: Argument) -> None:
    before = effect(load(*TINY))

    after = effect(load(*TINY, *words_of(argument)))

    assert after != before


@pytest.mark.parametrize(
    "argument",
    [row for row in ARGUMENTS.values() if row.disposition is Disposition.LATER],
    ids=lambda argument: str(argument.name),
)
def test_argument_of_a_later_part_is_refused(argument: Argument) -> None:
    found = mistakes(*TINY, *words_of(argument))

    assert any(f"'{argument.name}' cannot be used yet: {argument.note}" in text for text in found)


@pytest.mark.parametrize(
    "argument",
    [
        row
        for row in ARGUMENTS.values()
        if row.disposition is Disposition.ACCEPTED
        and row.name not in ("split", "iterable_dataset", "iterable_dataset_eval")
    ],
    ids=lambda argument: str(argument.name),
)
def test_accepted_argument_warns_once_with_its_reason(argument: Argument) -> None:
    words = {"input_type": ["txt"], "sampling_image_size": ["480", "720"]}
    given = [argument.flag, *words[argument.name]] if argument.name in words else words_of(argument)

    config = load(*TINY, *given)

    about = [line for line in config.warnings if f"'{argument.name}' has no effect" in line]
    assert len(about) == 1
    assert argument.note in about[0]


def test_activation_checkpointing_reaches_the_network_but_not_under_compat_sat() -> None:
    words = ["--checkpoint-activations", "false", "--checkpoint-num-layers", "2"]
    ours, upstream = load(*TINY, *words).model, load(*TINY, *words, "--compat", "sat").model

    assert ours is not None
    assert upstream is not None
    assert ours.network.params.checkpoint_activations is False
    assert ours.network.params.checkpoint_num_layers == 2
    assert upstream.network.params.checkpoint_activations is True


def test_position_rows_reach_the_network_and_compat_sat_sets_them() -> None:
    words = ([], ["--position-rows", "sat"], ["--compat", "sat"])

    models = [load(*TINY, *extra).model for extra in words]

    assert [m.network.params.position.first_rows for m in models if m] == [False, True, True]


def test_rotary_positions_reach_the_network_and_compat_sat_sets_them() -> None:
    words = ([], ["--rotary-positions", "sat"], ["--compat", "sat"])

    models = [load(*TINY, *extra).model for extra in words]

    assert [m.network.params.position.fits_size for m in models if m] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("cogvideox_2b", False),
        ("cogvideox_5b_lora", True),
        ("cogvideox_5b_i2v", False),
        ("cogvideox1.5_5b", False),
    ],
)
def test_rotary_positions_change_the_networks_that_diffusers_fits(name: str, fits: bool) -> None:
    model = load(*base(name, "sft")).model

    assert model is not None
    assert model.network.params.position.fits_size is fits


def test_compat_sat_sets_every_key_and_each_can_be_set_alone() -> None:
    sat = load(*TINY, "--compat", "sat").compat
    default = load(*TINY).compat

    assert default == CompatConfig()
    for name, (field, ours, theirs) in SWITCHES.items():
        assert getattr(sat, field) == theirs
        flag = "--" + name.replace("_", "-")
        assert getattr(load(*TINY, "--compat", "sat", flag, ours).compat, field) == ours
        assert getattr(load(*TINY, flag, theirs).compat, field) == theirs
    fields = {field.name for field in dataclasses.fields(CompatConfig)} - {"mode"}
    assert fields == {field for field, *_ in SWITCHES.values()}


@pytest.mark.parametrize(
    ("name", "run_id"),
    [
        ("MyModel", "mymodel"),
        ("lora-disney", "lora-disney"),
        ("5B LoRA_v2!", "5b-lora-v2"),
        ("Ärger", "rger"),
    ],
)
def test_run_id_comes_from_the_name_of_the_experiment(name: str, run_id: str) -> None:
    config = load(*TINY, "--experiment-name", name)

    assert config.run_id == run_id
    assert f"run_id: {run_id} (from experiment_name '{name}')" in config.warnings


def test_run_id_can_be_given_and_must_be_a_key() -> None:
    assert load(*TINY, "--run-id", "a.b_c-1").run_id == "a.b_c-1"
    assert "'Not Good' is not a valid run id" in mistakes(*TINY, "--run-id", "Not Good")[0]
    assert "args.experiment_name" in mistakes(*TINY, "--experiment-name", "!!!")[0]


def test_parser_offers_both_spellings_of_every_argument() -> None:
    options = {option for action in make_parser()._actions for option in action.option_strings}

    for argument in ARGUMENTS.values():
        assert {argument.flag, f"--{argument.name}"} <= options


def test_help_names_every_argument_with_its_default() -> None:
    text = make_parser().format_help()

    assert "--train-iters" in text
    assert "(default: 5000)" in text


def test_records_are_plain_values() -> None:
    records = {record["name"]: record for record in as_records()}

    assert set(records) == set(ARGUMENTS)
    assert records["sampling_image_size"]["default"] == [768, 1360]
    assert records["sampling_image_size"]["items"] == "integer"
    assert records["mode"]["choices"] == ["pretrain", "finetune", "inference"]


def test_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()

    assert with_table(page) == page, "run: cogvx config arguments --write docs/configuration.md"


def test_page_without_markers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no place for the table"):
        with_table("# nothing here")
