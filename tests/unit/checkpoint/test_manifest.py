from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from app.checkpoint.json_file import canonical_json
from app.checkpoint.layout import CheckpointRef
from app.checkpoint.manifest import (
    CheckpointIdentity,
    CheckpointManifest,
    FileRecord,
    FragmentRecord,
    ParameterRecord,
    check_tiling,
)
from app.errors import CheckpointError

MANIFEST = CheckpointManifest(
    identity=CheckpointIdentity(
        run_id="my-run",
        attempt=7,
        owner="3f9c2a1b",
        step=1000,
        kind="lora",
        parent="step-0000000900.000007",
        config_sha256="c" * 64,
    ),
    created="2026-01-02T03:04:05+00:00",
    files=(
        FileRecord("optim-00000-of-00001.safetensors", 100, 64, ("a" * 64, "b" * 64)),
        FileRecord("weights-00000-of-00001.safetensors", 40, 64, ("d" * 64,)),
    ),
    parameters={
        "blocks.0.x": ParameterRecord((2, 5), 0, ("master", "exp_avg", "exp_avg_sq")),
        "empty": ParameterRecord((0, 3), 1, ()),
    },
    fragments=(
        FragmentRecord("blocks.0.x", 0, 4, "optim-00000-of-00001.safetensors"),
        FragmentRecord("blocks.0.x", 0, 10, "weights-00000-of-00001.safetensors"),
        FragmentRecord("blocks.0.x", 4, 6, "optim-00000-of-00001.safetensors"),
    ),
)


def test_a_manifest_comes_back() -> None:
    assert CheckpointManifest.from_json(MANIFEST.to_json("x"), "x") == MANIFEST


def test_the_fields_are_those_of_the_format() -> None:
    value = json.loads(MANIFEST.to_json("x"))

    assert set(value) == {
        *("format_version", "run_id", "attempt", "owner", "step", "parent", "created", "kind"),
        *("files", "parameters", "fragments", "config_sha256", "dataset_sha256"),
        *("base_model_sha256", "sha256_of_this"),
    }
    assert value["files"][1] == {
        "name": "weights-00000-of-00001.safetensors",
        "bytes": 40,
        "piece_bytes": 64,
        "sha256": ["d" * 64],
    }
    assert value["fragments"][0] == ["blocks.0.x", 0, 4, "optim-00000-of-00001.safetensors"]
    assert MANIFEST.identity.ref == CheckpointRef(attempt=7, step=1000)


@pytest.mark.parametrize("at", [1, 200, -2])
def test_a_flipped_bit_is_found(at: int) -> None:
    data = bytearray(MANIFEST.to_json("x"))
    data[at] ^= 1

    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        CheckpointManifest.from_json(bytes(data), "a/manifest.json")


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_cut_manifest_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError):
        CheckpointManifest.from_json(MANIFEST.to_json("x")[:length], "x")


def resealed(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A manifest that lies, with a fitting sha256 of its own."""
    value = json.loads(MANIFEST.to_json("x"))
    del value["sha256_of_this"]
    change(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    value["sha256_of_this"] = hashlib.sha256(text.encode()).hexdigest()
    return canonical_json(value)


def set_in(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, new = path

    def change(value: Any) -> None:
        for key in keys:
            value = value[key]
        value[last] = new

    return change


LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "version": (set_in("format_version", 2), "format is 2"),
    "outside": (set_in("files", 0, "name", "../../etc/passwd"), "not the name of"),
    "folder": (set_in("files", 0, "name", "a/b"), "not the name of"),
    "hidden": (set_in("files", 0, "name", ".hidden"), "not the name of"),
    "itself": (set_in("files", 0, "name", "manifest.json"), "not the name of"),
    "negative": (set_in("files", 1, "bytes", -1), "is invalid"),
    "boolean": (set_in("files", 1, "bytes", True), "wrong type"),
    "digests": (set_in("files", 0, "sha256", ["a" * 64]), "1 digests"),
    "unlisted": (set_in("fragments", 0, 3, "optim-9.safetensors"), "not listed"),
    "unknown": (set_in("fragments", 0, 0, "other"), "unknown parameter: other"),
    "hole": (set_in("fragments", 2, 1, 5), "entry 4 is covered by no fragment"),
    "overlap": (set_in("fragments", 0, 2, 5), "entry 4 is covered twice"),
    "short": (set_in("fragments", 1, 2, 9), "fragments end at 9, it has 10"),
    "shape": (set_in("parameters", "blocks.0.x", "shape", [-2, -5]), "is invalid"),
    "kind": (set_in("parameters", "blocks.0.x", "kinds", ["pickle"]), "is invalid"),
    "fragment": (set_in("fragments", 0, ["a", 0, "4", "b"]), "not \\[name"),
    "parent": (set_in("parent", "../x"), "parent"),
    "run kind": (set_in("kind", "other"), "kind is 'other'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_contradicts_itself_is_refused(lie: str) -> None:
    change, message = LIES[lie]

    with pytest.raises(CheckpointError, match=message):
        CheckpointManifest.from_json(resealed(change), "x")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"{" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        CheckpointManifest.from_json(data, "x")


def test_a_parameter_without_entries_needs_no_fragment() -> None:
    check_tiling("empty", [], 0, "x")


def test_fragments_may_come_in_any_order() -> None:
    check_tiling("p", [(6, 4), (0, 1), (1, 5)], 10, "x")
