"""Which rank saves what of replicated state."""

from __future__ import annotations

from app.training.zero_partitions import balanced_owners


def test_parameters_are_dealt_by_size_to_the_least_loaded_rank() -> None:
    owner = balanced_owners({"a": 10, "b": 9, "c": 8, "d": 2, "e": 1}, ranks=2)

    assert owner == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 0}


def test_the_answer_does_not_depend_on_the_order_of_the_names() -> None:
    sizes = {f"p{i}": i % 3 for i in range(20)}

    assert balanced_owners(sizes, 3) == balanced_owners(dict(reversed(sizes.items())), 3)


def test_no_rank_has_more_than_the_mean_and_one_parameter() -> None:
    sizes = {f"p{i}": (7 * i) % 11 + 1 for i in range(50)}

    owner = balanced_owners(sizes, 4)

    loads = [sum(sizes[name] for name in sizes if owner[name] == rank) for rank in range(4)]
    assert max(loads) <= sum(sizes.values()) / 4 + max(sizes.values())
