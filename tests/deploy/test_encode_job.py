"""deploy/encode_job.yaml: an API server takes it, and its command line is one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from app.cli.encode import encode_options, make_encode_parser
from app.config.command_line import read_command_line
from app.config.load import config_of
from app.config.runnable import encodable_run
from app.registry import TARGETS
from tests.deploy.validation import complaints
from tests.support.configs import ROOT, path_of

JOB: dict[str, Any] = yaml.safe_load((ROOT / "deploy/encode_job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
WEIGHTS = ("model.conditioner_config.params.emb_models.0.params.model_dir=s3://w/t5",)


def test_an_api_server_takes_the_job() -> None:
    assert complaints(JOB) == []


def test_every_pod_encodes_its_own_part_of_all() -> None:
    (container,) = POD["containers"]
    assert container["command"] == ["cogvx", "encode"]
    layers = {"00-cogvideox_2b_lora.yaml": "cogvideox_2b_lora", "01-sft.yaml": "sft"}
    words = [
        path_of(layers[Path(word).name]) if Path(word).name in layers else word
        for word in container["args"]
    ]
    ckpt = "model.first_stage_config.params.ckpt_path=s3://w/3d-vae.pt"
    plain = [*words, *WEIGHTS, ckpt, "args.valid_data=[]"]
    line = read_command_line(plain, make_encode_parser())
    config = config_of(line, TARGETS)
    encodable_run(config)

    count = JOB["spec"]["completions"]
    found = [
        encode_options(line.own, config, {"JOB_COMPLETION_INDEX": str(index)})
        for index in range(count)
    ]
    parts = {(options.part, options.parts) for options in found}

    assert JOB["spec"]["completionMode"] == "Indexed"
    assert parts == {(index, count) for index in range(count)}


def test_a_pod_ends_for_good_on_the_codes_that_a_new_one_would_repeat() -> None:
    (rule,) = JOB["spec"]["podFailurePolicy"]["rules"]

    assert rule["action"] == "FailIndex"
    assert rule["onExitCodes"]["values"] == [2, 65, 66, 77, 78]
    assert POD["restartPolicy"] == "Never"  # a pod failure policy wants it
