"""THE table of arguments: every argument of the product, declared once.

The options of the command line, the checks of the YAML section `args:`, the page
docs/configuration.md and schemas of other tools are derived from it.
"""

from __future__ import annotations

from app.config.arguments.data import DATA_ARGUMENTS
from app.config.arguments.ours import OUR_ARGUMENTS
from app.config.arguments.row import Argument
from app.config.arguments.training import TRAINING_ARGUMENTS

ARGUMENTS: dict[str, Argument] = {
    argument.name: argument for argument in (*DATA_ARGUMENTS, *TRAINING_ARGUMENTS, *OUR_ARGUMENTS)
}


def defaults() -> dict[str, object]:
    """The built-in default of every argument."""
    return {name: argument.default for name, argument in ARGUMENTS.items()}
