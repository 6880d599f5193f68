"""Values of the chart as Helm reads, merges and judges them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python

KUBE_VERSION = "v1.32.0"


def values_from(text: str) -> dict[str, Any]:
    """A YAML map of values, by Helm's own reader."""
    return dict(helm_python.values_from_yaml(text))


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`-f below -f above`: maps are merged, everything else is replaced."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = overlaid(below[key], above[key])
    return merged


def lint(chart: Path, values: Mapping[str, Any]) -> list[str]:
    """Warnings and errors of `helm lint --strict`."""
    report = helm_python.lint(chart, dict(values), strict=True, kube_version=KUBE_VERSION)
    return [message["error"] for message in report["messages"] if message["severity"] >= 2]
