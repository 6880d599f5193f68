"""What an API server with the training-operator would say to a rendered object, without one.

Three judges: the CRD's schema made strict (`kubectl apply --validate=strict`), the operator's
validating webhook (pkg/webhooks/pytorch/pytorchjob_webhook.go of v1.9.0, by reading), and the
core schemas for pods and core kinds.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

CRD = Path(__file__).parents[1] / "crds" / "pytorchjob-crd-v1.9.0.yaml"
KUBE_VERSION = "1.32"

Document = dict[str, Any]


def complaints(document: Document) -> list[str]:
    """Everything that is wrong with an object; empty when it would be accepted."""
    if document["kind"] != "PyTorchJob":
        return core_complaints(document)
    found = crd_complaints(document) + webhook_complaints(document)
    for kind, replica in document["spec"]["pytorchReplicaSpecs"].items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": kind.lower(), **replica["template"].get("metadata", {})},
            "spec": replica["template"]["spec"],
        }
        found += core_complaints(pod)
    return found


def core_complaints(document: Document) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBE_VERSION, strict=True)
    except kubernetes_validate.ValidationError as problem:
        return [f"{document['kind']}: {problem.message}"]
    return []


def crd_complaints(document: Document) -> list[str]:
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in _crd().iter_errors(document)
    ]


def webhook_complaints(job: Document) -> list[str]:
    spec = job["spec"]
    replicas = spec.get("pytorchReplicaSpecs")
    if not replicas:
        return ["pytorchReplicaSpecs is missing"]
    found = []
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"]):
        found.append("metadata.name is not a DNS-1035 label")
    if "elasticPolicy" in spec and "Worker" not in replicas:
        found.append("elasticPolicy without a Worker")
    for kind, replica in replicas.items():
        if kind not in ("Master", "Worker"):
            found.append(f"replica type {kind}")
        if kind == "Master" and replica.get("replicas") != 1:
            found.append("Master.replicas is not 1")
        if replica.get("replicas", 1) < 1:
            found.append(f"{kind}.replicas is below 1")
        containers = replica["template"]["spec"].get("containers", [])
        if not any(container["name"] == "pytorch" for container in containers):
            found.append(f"{kind}: no container named pytorch")
        found += [f"{kind}: no image" for container in containers if not container.get("image")]
    # The webhook lets these pass, and then no pod, or none but the first, can be made.
    if len(job["metadata"]["name"]) > 50:
        found.append("metadata.name leaves no room for pod names")
    policies = {"Always", "OnFailure", "Never", "ExitCode"}
    found += [
        f"{kind}.restartPolicy"
        for kind, r in replicas.items()
        if r["restartPolicy"] not in policies
    ]
    return found


@functools.cache
def _crd() -> jsonschema.Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(CRD.read_text(encoding="utf-8"), Loader=loader)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    _make_strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _make_strict(schema: dict[str, Any]) -> None:
    """Refuse unknown fields, and say int-or-string the way JSON Schema does."""
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("anyOf", None)
        schema.pop("pattern", None)
        schema["type"] = ["integer", "string"]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not open_ended:
        schema.setdefault("additionalProperties", False)
    for child in schema.get("properties", {}).values():
        _make_strict(child)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            _make_strict(schema[name])
