"""Render the chart with the real Helm engine; no helm binary, no cluster. The only Helm import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

from app.errors import ConfigError

Document = dict[str, Any]  # one Kubernetes object


@dataclass(frozen=True, slots=True)
class Release:
    """`helm install NAME --namespace NAMESPACE`."""

    name: str = "cogvx-train"
    namespace: str = "default"


def render(
    chart: Path, values: Mapping[str, Any] | None = None, release: Release = Release()
) -> list[Document]:
    """The objects that `helm template` prints, as dictionaries, in its file order.

    Raises:
        ConfigError: the schema or the templates reject the values.
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
    """The same as text by template path, including NOTES.txt.

    Raises:
        ConfigError: the schema or the templates reject the values.
    """
    try:
        with helm_python.Chart.load(chart) as loaded:
            rendered = loaded.render(
                dict(values or {}), name=release.name, namespace=release.namespace
            )
    except helm_python.HelmError as problem:
        raise ConfigError(
            f"the chart rejects the values: {problem}",
            where=str(chart),
            fix="correct the values; deploy/helm/values.yaml explains each one",
        ) from None
    return dict(rendered)
