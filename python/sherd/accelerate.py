"""``accelerate launch`` for sherd, with the configuration file that a program already has:

    python -m sherd.accelerate launch --config_file config.yaml train.py ARGS   # in the place of: accelerate launch ...

A DEEPSPEED configuration is followed as sherd.as_deepspeed says. One of FSDP is run as the ZeRO stage that shards the
same (2 without reshard_after_forward, else 3), by Accelerate's DeepSpeed branch, which each start says; what of it
sherd does not have is refused.
"""
from __future__ import annotations

import sys

from . import deepspeed_names


def launch(arguments: list[str]) -> None:
    deepspeed_names.install()
    from accelerate.commands.launch import launch_command, launch_command_parser
    args = launch_command_parser().parse_args(arguments)
    program = ["-m", args.training_script] if args.module else [args.training_script]
    args.training_script, args.module = "sherd.as_deepspeed", True
    args.training_script_args = [*program, *args.training_script_args]
    args.cpu = False  # what asks for the CPU asks for one process without DeepSpeed besides
    launch_command(args)


def main() -> None:
    if sys.argv[1:2] != ["launch"]:
        print("usage: python -m sherd.accelerate launch [OPTIONS of accelerate launch] PROGRAM.py [ARGUMENTS]",
              file=sys.stderr)
        sys.exit(2)
    launch(sys.argv[2:])


if __name__ == "__main__":
    main()
