"""Which rank saves what of replicated state, and what a filled optimizer continues."""

from __future__ import annotations

import torch
from torch import Tensor

from app.training.zero_partitions import OwnedState, Slot, balanced_owners

GRADIENT = torch.tensor([1.0, -2.0, 0.5, 4.0])


class Stepped:
    """A flat tensor of four entries, all of them of parameter `w`, under Adam."""

    def __init__(self) -> None:
        self.flat = torch.nn.Parameter(torch.zeros(4))
        self.optimizer = torch.optim.AdamW([self.flat], lr=0.1)
        slot = Slot("w", group=0, flat=self.flat, offset=0, start=0, numel=4)
        self.state = OwnedState([slot], self.optimizer, average=None)

    def step(self) -> None:
        self.flat.grad = GRADIENT.clone()
        self.optimizer.step()


def test_adam_continues_at_the_step_that_is_filled_in() -> None:
    undisturbed, filled = Stepped(), Stepped()
    for _ in range(3):
        undisturbed.step()
    saved = {fragment.kind: fragment.values for fragment in undisturbed.state.fragments()}

    def read(name: str, kind: str, start: int, numel: int) -> Tensor:
        return saved[kind][start : start + numel]

    filled.state.fill(read, undisturbed.state.adam_steps(), ema_updates=None)

    assert filled.state.adam_steps() == {"0": 3}
    undisturbed.step()
    filled.step()
    assert filled.flat.equal(undisturbed.flat)


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
