"""One section of a model file on its own, every mistake reported together.

Each `parse_*` takes a section as YAML has it (`target:` and `params:`), the dotted path to name
in messages, and the table of names (`app.registry.TARGETS`, or that plus a caller's own rows).
Raises ConfigErrors with all mistakes; warnings go to `Problems.warnings` if one is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from app.config.problems import Problems
from app.config.reader import Context
from app.config.sections.diffusion import read_denoiser, read_sampler
from app.config.sections.encoders import read_conditioner, read_first_stage
from app.config.sections.model import read_model
from app.config.sections.network import read_dit
from app.config.target import Registry

Parsed = TypeVar("Parsed")


def parse_section(
    read: Callable[[object, str, Context], Parsed | None],
    node: object,
    where: str,
    targets: Registry,
    problems: Problems | None = None,
) -> Parsed:
    """The section that `read` understands."""
    problems = problems if problems is not None else Problems()
    return problems.checked(read(node, where, Context(targets, problems)))


parse_network = partial(parse_section, read_dit)
parse_first_stage = partial(parse_section, read_first_stage)
parse_conditioner = partial(parse_section, read_conditioner)
parse_denoiser = partial(parse_section, read_denoiser)
parse_sampler = partial(parse_section, read_sampler)
parse_model = partial(parse_section, read_model)
