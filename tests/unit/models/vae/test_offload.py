from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.models.vae.offload import offloading


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_piece_comes_back_bit_for_bit_as_often_as_it_is_read(
    place: str, dtype: torch.dtype
) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1)

    with offloading(place) as offload:
        piece = offload(x)

        assert torch.equal(piece.get(), x)
        assert torch.equal(piece.get(), x)
        piece.drop()


def test_files_are_deleted_one_by_one_and_at_the_end(scratch: Path) -> None:
    def files() -> list[Path]:
        return [path for path in scratch.rglob("*") if path.is_file()]

    with offloading("disk") as offload:
        first, _ = offload(torch.ones(3)), offload(torch.zeros(3))
        assert len(files()) == 2
        first.drop()
        assert len(files()) == 1

    assert files() == []
