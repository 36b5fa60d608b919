"""The command line: python -m tritonconv.nets COMMAND."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from . import _commands, _train_command

PROGRAM = "python -m tritonconv.nets"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tritonconv.nets: error: {' '.join(message.split())}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; what it refuses is one line on stderr and exit status 2."""
    parser = Parser(
        prog=PROGRAM,
        description="The classic networks on tritonconv's layers.",
        epilog=f"example: {PROGRAM} train --help",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _train_command.add_to(commands)
    _commands.add_to(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args, parser.error)
    except KeyboardInterrupt:
        parser.exit(130)


if __name__ == "__main__":
    main()
