"""The rules of the image, read from the Dockerfile: it cannot be built without docker."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.rehearsal.substitutions import ENTRYPOINT, IMAGE_ENVIRONMENT

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Instruction and argument, with continued lines joined and comments left out."""
    lines = [
        line
        for line in DOCKERFILE.read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (x.partition(" ") for x in text.split("\n"))]


def arguments(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def environment() -> dict[str, str]:
    words = [word for line in arguments("ENV") for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, "")


def test_bases_are_exact_versions_and_there_are_two_stages() -> None:
    bases = [line.split()[0] for line in arguments("FROM")]

    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.1[12]\.\d+-bookworm", base) for base in bases)


def test_the_last_user_is_not_root_and_is_a_number() -> None:
    assert arguments("USER") == ["10001:10001"]
    assert instructions()[-1][0] == "ENTRYPOINT"


def test_the_entry_point_is_the_launcher_in_exec_form() -> None:
    assert arguments("ENTRYPOINT") == ['["cogvx", "launch"]']
    assert ENTRYPOINT == ("cogvx", "launch")


def test_every_cache_lies_in_the_scratch_volume() -> None:
    found = environment()

    caches = {
        *("HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR"),
        *("HF_HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "XDG_CACHE_HOME"),
    }
    assert caches <= set(found)
    assert all(found[name].startswith("/scratch/") for name in caches)
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_the_rehearsal_gives_its_pods_the_images_variables() -> None:
    found = environment()
    found.pop("PATH")

    assert found == IMAGE_ENVIRONMENT


def test_every_run_line_is_a_make_step_of_setup() -> None:
    makefile = (ROOT / "Makefile").read_text()
    steps = {shlex.split(line)[1] for line in arguments("RUN")}
    ran = _needed_by(makefile, ["venv", "install-torch", "install-all"])

    assert all(line.startswith("make ") for line in arguments("RUN"))
    assert "venv install-torch install-all" in makefile  # what `make setup` calls
    assert steps <= ran


def _needed_by(makefile: str, targets: list[str]) -> set[str]:
    """The targets and their prerequisites, all the way down."""
    rules = dict(re.findall(r"^([a-z-]+):([^#\n=]*)", makefile, flags=re.MULTILINE))
    found: set[str] = set()
    while targets:
        target = targets.pop()
        if target not in found and target in rules:
            found.add(target)
            targets += rules[target].replace("|", " ").split()
    return found


@pytest.mark.parametrize("word", ["WEIGHT", "SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY"])
def test_no_secret_and_no_weights_go_in(word: str) -> None:
    names = [*arguments("ARG"), *environment()]
    copied = " ".join(arguments("COPY")).upper()

    assert not [name for name in names if word in name.upper()]
    assert word not in copied


def test_only_what_the_image_is_made_of_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for line in arguments("COPY")
        if not line.startswith("--from")
        for word in line.split()[:-1]
    }

    assert "*" in lines
    assert copied == let_in
