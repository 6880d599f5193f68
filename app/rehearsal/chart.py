"""Render the chart with the real Helm engine; no helm binary, no cluster. The only Helm import."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

from app.errors import ConfigError

Document = dict[str, Any]  # one Kubernetes object
KUBE_VERSION = "v1.32.0"  # what `lint` checks against


@dataclass(frozen=True, slots=True)
class Release:
    """`helm install NAME --namespace NAMESPACE`."""

    name: str = "cogvx-train"
    namespace: str = "default"


def merge_values(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as Helm does: maps merge, all else is replaced; null stays, to unset a default."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = merge_values(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def read_values(
    files: Sequence[Path] = (), values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Merge values files from left to right, then `values`, as `-f a -f b --set ...` does.

    Raises:
        ConfigError: a file is not a YAML map.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            found = helm_python.values_from_yaml(file.read_text(encoding="utf-8"))
        except (OSError, helm_python.HelmError) as problem:
            raise ConfigError(
                f"cannot read values: {problem}",
                where=str(file),
                fix="write a YAML map, as deploy/helm/values.yaml is one",
            ) from None
        merged = merge_values(merged, found)
    return merge_values(merged, values or {})


def render(
    chart: Path, values: Mapping[str, Any] | None = None, release: Release = Release()
) -> list[Document]:
    """The objects that `helm template` prints, as dictionaries, in its order of files.

    Args:
        chart: folder of the chart.
        values: merged values (`read_values`) over the chart's own.
        release: name and namespace.

    Raises:
        ConfigError: the schema or the templates refuse the values.
    """
    texts = render_texts(chart, values, release)
    return [
        document
        for path, text in texts.items()
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]


def render_texts(
    chart: Path, values: Mapping[str, Any] | None = None, release: Release = Release()
) -> dict[str, str]:
    """The same as texts by template path, NOTES.txt included.

    Raises:
        ConfigError: the schema or the templates refuse the values.
    """
    try:
        with helm_python.Chart.load(chart) as loaded:
            rendered = loaded.render(
                dict(values or {}), name=release.name, namespace=release.namespace
            )
    except helm_python.HelmError as problem:
        raise ConfigError(
            f"the chart refuses: {problem}",
            where=str(chart),
            fix="correct the values; deploy/helm/values.yaml explains each one",
        ) from None
    return dict(rendered)


def lint(chart: Path, values: Mapping[str, Any] | None = None) -> list[str]:
    """Warnings and errors of `helm lint --strict`; empty when there is none."""
    report = helm_python.lint(chart, dict(values or {}), strict=True, kube_version=KUBE_VERSION)
    return [message["error"] for message in report["messages"] if message["severity"] >= 2]
