"""A process group of one, for code that averages over ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from app.distributed.groups import ProcessGroups, process_groups
from app.distributed.rank import RankInfo


@pytest.fixture
def groups() -> Iterator[ProcessGroups]:
    before = dict(os.environ)
    with process_groups(RankInfo.from_environment({}), device=torch.device("cpu")) as started:
        yield started
    os.environ.clear()
    os.environ.update(before)
