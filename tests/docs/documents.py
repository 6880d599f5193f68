"""YAML of the pages, judged by whoever would read it: the configuration, the chart, a cluster."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import helm_python
import yaml

from app.config.command_line import read_command_line
from app.config.layers import SECTIONS
from app.config.load import config_of
from app.config.runnable import trainable_run
from app.config.schema.run import RunConfig
from app.registry import TARGETS
from app.rehearsal.chart import render
from tests.deploy.validation import complaints
from tests.docs.pages import ROOT
from tests.support.helm_values import lint, values_from

CHART = ROOT / "deploy" / "helm"
MOUNTED = "/etc/cogvx/config"
# Configuration layers are judged as the last ones on these.
STOCK = tuple(str(ROOT / "configs" / name) for name in ("cogvideox_2b_lora.yaml", "sft.yaml"))
# What the training-operator fills into its template of an init container
# (pkg/controller.v1/pytorch/initcontainer.go of v1.9.0).
OPERATOR_FIELDS = {"InitContainerImage": "alpine:3.10", "MaxTries": "100", "MasterAddr": "a-0"}


class Refused(Exception):
    """Whoever would read this would not accept it."""


def _refuse(complaints: Sequence[str]) -> None:
    if complaints:
        raise Refused("; ".join(complaints))


def kind_of(text: str) -> str:
    """What a YAML block is, by its top-level keys; "unknown" if nothing here would read it."""
    if "{{" in text:
        return "operator template"
    documents = [document for document in yaml.safe_load_all(text) if document is not None]
    if not documents or not all(isinstance(document, dict) for document in documents):
        return "unknown"
    if all({"apiVersion", "kind"} <= set(document) for document in documents):
        return "objects"
    keys = {key for document in documents for key in document}
    if keys <= set(SECTIONS):
        return "layer"
    if keys <= set(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))):
        return "values"
    return "unknown"


def judge_layer(text: str) -> None:
    """`cogvx config check` of the stock files and this layer above them."""
    with tempfile.TemporaryDirectory() as folder:
        layer = Path(folder) / "layer.yaml"
        layer.write_text(text, encoding="utf-8")
        config_of(read_command_line(["--base", *STOCK, str(layer)]), TARGETS)


def values_of(text: str) -> dict[str, Any]:
    """A block of values, read as Helm reads a file."""
    try:
        return values_from(text)
    except helm_python.HelmError as problem:
        raise Refused(f"the values are not a map: {problem}") from None


def judge_values(values: Mapping[str, Any]) -> None:
    """The chart renders, a cluster accepts the objects, and the pods' command line trains."""
    documents = render(CHART, values)
    _refuse(lint(CHART, values))
    _refuse([complaint for document in documents for complaint in complaints(document)])
    by_kind = {document["kind"]: document for document in documents}
    master = by_kind["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Master"]
    (container,) = master["template"]["spec"]["containers"]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in by_kind["ConfigMap"]["data"].items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        words = [word.replace(MOUNTED, folder) for word in container["args"]]
        assert words[0] == "train"
        config = config_of(read_command_line(words[1:]), TARGETS)
    config = trainable_run(config)
    _refuse([f"no pod has {path}" for path in _paths(config) if not path.startswith("s3://")])


def _paths(config: RunConfig) -> list[str]:
    """What a run reads and writes. A pod of the chart has only empty volumes: no path is local."""
    named = [
        config.arguments["load"],
        config.arguments["save"],
        config.model.conditioner.text.model_dir,
        config.model.first_stage.params.ckpt_path,
    ]
    return [str(path) for path in (*config.data.train, *config.data.valid, *named)]


def judge_objects(text: str) -> None:
    """An API server with the training-operator would accept every object."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    _refuse([complaint for document in documents for complaint in complaints(document)])


def judge_operator_template(text: str) -> None:
    """Filled in as the operator does it, these are init containers that a pod may have."""
    filled = re.sub(r"{{ *\.(\w+) *}}", lambda field: OPERATOR_FIELDS[field[1]], text)
    containers = yaml.safe_load(filled)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "worker"},
        "spec": {
            "initContainers": containers,
            "containers": [{"name": "pytorch", "image": "cogvx-train"}],
        },
    }
    _refuse(complaints(pod))
