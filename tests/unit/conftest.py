"""A process group of one, for code that averages over ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from app.distributed.groups import ProcessGroups


@pytest.fixture
def groups() -> Iterator[ProcessGroups]:
    import torch  # here: most tests below need no torch

    from app.distributed.groups import process_groups
    from app.distributed.rank import RankInfo

    before = dict(os.environ)
    with process_groups(RankInfo.from_environment({}), device=torch.device("cpu")) as started:
        yield started
    os.environ.clear()
    os.environ.update(before)
