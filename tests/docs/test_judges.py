"""The judges of the pages do refuse what a user could not use, and take what he could."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from app.errors import CogvxError
from tests.docs.commands import Command, judge
from tests.docs.documents import (
    Refused,
    judge_layer,
    judge_objects,
    judge_operator_template,
    judge_values,
    kind_of,
    values_of,
)
from tests.docs.pages import ROOT

STOCK = "--base configs/cogvideox_2b_lora.yaml configs/sft.yaml"
REFUSED = {
    "an unknown program": ("kubectl get pods", "kubectl"),
    "an unknown command": ("cogvx tran --base a.yaml", "no command 'tran'"),
    "cogvx alone": ("cogvx", "without a command"),
    "an unknown flag": (f"cogvx train {STOCK} --load W --sav s3://runs", "did you mean '--save'"),
    "a flag of another command": ("cogvx export s3://runs/a --prompt x", "--prompt"),
    "a missing operand": ("cogvx convert ./a --to sat", "DST"),
    "a word for a number": ("cogvx export s3://runs/a --step last", "last"),
    "a choice that is none": ("cogvx export s3://runs/a --dtype fp8", "fp8"),
    "an unknown subcommand": ("cogvx data peck ./a --out ./b", "peck"),
    "a mistake in an override": (f"cogvx config check {STOCK} args.lr=fast", "exit code 78"),
    "a file that is not there": ("cogvx config check --base configs/none.yaml", "exit code"),
    "a placeholder for the weights": (f"cogvx train {STOCK}", "placeholder"),
    "no data to encode": (f"cogvx encode {STOCK} args.train_data=[] args.valid_data=[]", "missing"),
    "no model to sample from": ("cogvx sample --prompt x", "neither --base nor --run"),
    "a size no model has": (
        "cogvx sample --base configs/cogvideox_5b.yaml --load W --prompt x --size 481x720",
        "multiple of 16",
    ),
    "an image for a text model": (
        "cogvx sample --base configs/cogvideox_5b.yaml --load W --prompt x --image a.png",
        "from text alone",
    ),
    "a command behind launch": ("cogvx launch --grace-period-s 60 -- tran", "no command 'tran'"),
    "another module": ("python -m apps train", "python -m app"),
    "another program of torchrun": ("torchrun train.py", "torchrun"),
    "an unknown flag of torchrun": ("torchrun --nproc 2 -m app train", "--nproc"),
    "an unknown target": ("make tests", "'tests'"),
    "an unknown variable of make": ("make setup PYTHN=python3", "PYTHN"),
    "a chart that is elsewhere": ("helm install a deploy/chart", "no chart"),
    "values that nobody shows": ("helm install a deploy/helm -f mine.yaml", "mine.yaml"),
    "an unknown flag of helm": ("helm install a deploy/helm --value v.yaml", "--value"),
}
ACCEPTED = (
    "cogvx --help",
    "cogvx train --help",
    "cogvx data check --help",
    "cogvx launch -- doctor --json",
    f"python -m app train {STOCK} --load W",
    f"torchrun --nproc-per-node 2 -m app train {STOCK} --load W",
    "make setup PYTHON=python3.12",
)
VALUES: dict[str, Any] = {
    "config": {
        "layers": [
            "cogvideox_2b_lora.yaml",
            "sft.yaml",
            {
                "args": {
                    "train_data": ["s3://a"],
                    "valid_data": [],
                    "load": "s3://b",
                    "save": "s3://c",
                }
            },
        ]
    },
    "run": {
        "overrides": [
            "model.first_stage_config.params.ckpt_path=s3://d/3d-vae.pt",
            "model.conditioner_config.params.emb_models.0.params.model_dir=s3://d/t5",
        ]
    },
}
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b}]}\n"


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("case", REFUSED)
def test_a_command_that_would_fail_is_refused(case: str) -> None:
    line, says = REFUSED[case]

    with pytest.raises(Refused, match=says):
        judge(Command(tuple(shlex.split(line))))


@pytest.mark.parametrize("line", ACCEPTED)
def test_a_good_command_is_accepted(line: str) -> None:
    judge(Command(tuple(shlex.split(line))))


def test_the_values_of_a_page_are_those_of_its_helm_command() -> None:
    words = ("helm", "install", "a", "deploy/helm", "-f", "values.yaml")

    judge(Command(words, (VALUES,)))  # complete ones are accepted
    with pytest.raises(Refused, match="replicas"):
        judge(Command(words, ({**VALUES, "replicas": 2},)))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("args: {lr: 1}\ndata: {target: a}\n", "layer"),
        ("workers: 1\nrun: {id: a}\n", "values"),
        ("args: {lr: 1}\nworkers: 1\n", "unknown"),
        ("- a\n", "unknown"),
        ("", "unknown"),
        (POD, "objects"),
        ("- image: {{.InitContainerImage}}\n", "operator template"),
    ],
)
def test_yaml_is_known_by_its_keys(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_a_layer_with_a_mistake_is_refused() -> None:
    judge_layer("data: {buckets: [9x480x720]}\n")
    with pytest.raises(CogvxError, match="'bucket'"):
        judge_layer("data: {bucket: [9x480x720]}\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {**VALUES["config"], "overrides": {"args": {"lr": 1}}}}, "overrides"),
        ({"run": {"overrides": [*VALUES["run"]["overrides"], "args.itres=1"]}}, "itres"),
        ({"run": {"overrides": [*VALUES["run"]["overrides"], "args.load={your weights}"]}}, "load"),
        ({"env": [{"name": "A", "value": "b", "valeu": "c"}]}, "valeu"),
    ],
)
def test_values_that_a_run_could_not_use_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises((CogvxError, Refused), match=says):
        judge_values({**VALUES, **change})


def test_a_path_that_no_pod_has_is_refused() -> None:
    with pytest.raises(Refused, match="t5-v1_1-xxl"):
        judge_values({**VALUES, "run": {"overrides": VALUES["run"]["overrides"][:1]}})


def test_values_are_a_map() -> None:
    with pytest.raises(Refused, match="not a map"):
        values_of("- a\n")


def test_objects_and_templates_with_an_unknown_field_are_refused() -> None:
    judge_objects(POD)
    judge_operator_template("- {name: a, image: {{.InitContainerImage}}}\n")

    with pytest.raises(Refused, match="imagee"):
        judge_objects(POD.replace("image", "imagee"))
    with pytest.raises(Refused, match="imagee"):
        judge_operator_template("- {name: a, imagee: {{.InitContainerImage}}}\n")
    with pytest.raises(KeyError, match="Image"):
        judge_operator_template("- {name: a, image: {{.Image}}}\n")
