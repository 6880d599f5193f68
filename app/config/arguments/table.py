"""THE table of arguments: every argument of the product, declared once.

An argument is a field of a schema class made by `argument`, or a row of this package where its
value goes into the configuration in another way. The options of the command line, the checks of
the YAML section `args:`, the page docs/configuration.md and schemas of other tools are derived
from it.
"""

from __future__ import annotations

from app.config.argument import Argument, arguments_of
from app.config.arguments.data import DATA_ARGUMENTS
from app.config.arguments.run import RUN_ARGUMENTS
from app.config.schema.data import DataConfig
from app.config.schema.diffusion import SamplerConfig
from app.config.schema.model import DiTConfig
from app.config.schema.run import CompatConfig
from app.config.schema.training import (
    EvaluationConfig,
    LrScheduleConfig,
    OptimizerConfig,
    TrainingConfig,
)

SCHEMAS = (
    DataConfig,
    TrainingConfig,
    OptimizerConfig,
    LrScheduleConfig,
    EvaluationConfig,
    DiTConfig,
    SamplerConfig,
    CompatConfig,
)
ARGUMENTS: dict[str, Argument] = {
    row.name: row
    for row in (*DATA_ARGUMENTS, *RUN_ARGUMENTS, *(row for _, row in arguments_of(*SCHEMAS)))
}
