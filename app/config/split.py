"""`split`: shares of training, validation and test data in `train_data`."""

from __future__ import annotations

from app.errors import ConfigError


def split_shares(
    text: str, *, has_valid: bool, has_test: bool = False
) -> tuple[float, float, float]:
    """The shares, which sum to 1. A part for which data is named gets none, as upstream has it.

    Raises:
        ConfigError: no numbers, or nothing is left for training.
    """
    try:
        numbers = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        numbers = []
    numbers = [*numbers, 0.0, 0.0][:3] if numbers else []
    if numbers:
        numbers[1] = 0.0 if has_valid else numbers[1]
        numbers[2] = 0.0 if has_test else numbers[2]
    if not numbers or not min(numbers) >= 0 or not 0 < numbers[0] < float("inf"):
        raise ConfigError(
            f"'split' is '{text}'", where="args.split", mend="give shares, such as 90,5,5 or 1,0,0"
        )
    train, valid, test = (number / sum(numbers) for number in numbers)
    return train, valid, test
