from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config.schema.data import split_shares
from app.data.sources.registered import MapSource
from app.data.sources.sft import SFTSource
from app.data.sources.views import PARTS, members, part_of
from app.errors import ConfigError, DataError
from tests.support.clip_files import write_folder
from tests.unit.data.video.test_sizes import FOLDER, SourceSettings


def test_shares_sum_to_one_and_named_data_takes_no_share() -> None:
    assert split_shares("90,5,5", has_valid=False) == pytest.approx((0.9, 0.05, 0.05))
    assert split_shares("90,10,5", has_valid=True, has_test=True) == (1.0, 0.0, 0.0)
    assert split_shares("1", has_valid=False) == (1.0, 0.0, 0.0)
    assert split_shares("3/1", has_valid=False) == (0.75, 0.25, 0.0)


@pytest.mark.parametrize("text", ["", "a,b", "0,1,0", "-1,2,0", "1,-1,0", "nan,0,0", "inf,1,0"])
def test_shares_that_leave_nothing_for_training_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        split_shares(text, has_valid=False)


@given(
    st.integers(3, 3000),
    st.tuples(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_parts_cover_the_dataset_and_never_overlap(
    length: int, numbers: tuple[float, float, float]
) -> None:
    shares = [number / sum(numbers) for number in numbers]

    parts = [members(length, shares, part, "here").tolist() for part in PARTS]

    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(length))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - share * length) <= 2.5
        assert bool(part) == (share > 0)


def test_the_parts_are_the_same_in_every_run_and_not_a_piece_of_the_order() -> None:
    valid = members(1000, (0.9, 0.1, 0.0), "valid", "here")

    assert valid.tolist() == members(1000, (0.9, 0.1, 0.0), "valid", "here").tolist()
    assert valid.min() < 100 < 900 < valid.max()


def test_fewer_samples_than_parts_is_an_error() -> None:
    with pytest.raises(DataError, match="2 samples cannot be split into 3"):
        members(2, (0.8, 0.1, 0.1), "train", "here")


def test_a_part_reads_its_own_samples_and_keeps_their_names(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{n}": f"clip {n}" for n in range(6)})
    settings = SourceSettings(cache_dir=tmp_path / "cache")
    whole = SFTSource(FOLDER, str(tmp_path), settings)
    shares = (0.5, 0.3, 0.2)

    parts = [part_of(whole, shares, part, "here") for part in PARTS]

    ids = [{part.sample_id(index) for index in range(len(part))} for part in parts]
    assert [len(part) for part in parts] == [3, 2, 1]
    assert set.union(*ids) == {("", f"videos/{n}.mp4") for n in range(6)}
    assert sum(len(part) for part in ids) == 6
    assert len({part.fingerprint() for part in parts} | {whole.fingerprint()}) == 4
    item = parts[2].read(0, 0)
    assert {("", item["key"])} == ids[2]
    assert parts[0].shapes is not None
    assert len(parts[0].shapes.sizes()) == 3
    assert part_of(whole, (1.0, 0.0, 0.0), "train", "here") is whole
    settings.decoders.close()


def test_counts_per_shard_are_those_of_the_part() -> None:
    class Sharded(MapSource):
        def shard_sizes(self) -> list[int]:
            return [4, 0, 3, 3]

    whole = Sharded([{"mp4": np.zeros(1), "txt": ""}] * 10, "numbers")
    chosen = members(10, (0.6, 0.4, 0.0), "train", "here").tolist()

    part = part_of(whole, (0.6, 0.4, 0.0), "train", "here")

    expected = [sum(a <= i < b for i in chosen) for a, b in ((0, 4), (4, 4), (4, 7), (7, 10))]
    assert list(part.shard_sizes()) == expected
