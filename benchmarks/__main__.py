"""The command line: python -m benchmarks COMMAND, from the checkout's root."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "python -m benchmarks"
# of a GPU machine's steps
SECONDS = {"tests": 200, "tune": 0, "quick": 270, "networks": 0, "report": 30}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Measure tritonconv's speed.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_run, _add_report, _add_compare, _add_host, _add_gpu):
        add(commands)
    args = parser.parse_args(argv)
    return args.run(args)


def _add_run(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("run", help="measure; write a results file")
    command.set_defaults(run=_run)
    command.add_argument("-m", "--markers", default="quick", help="quick (default), networks, full")
    command.add_argument("-k", "--keywords", default="", help="as pytest's -k")
    command.add_argument("--results", type=Path, metavar="FILE", help="(default: by device, date)")


def _run(args: argparse.Namespace) -> int:
    from .device import machine
    from .results import default_path
    from .run import run

    path = args.results or default_path(machine())
    status = run(path, args.markers, args.keywords)
    print(f"results  {path}")
    return status


def _add_report(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("report", help="a results file as Markdown and plots")
    command.set_defaults(run=_report)
    command.add_argument("results", type=Path, nargs="+", metavar="FILE")
    command.add_argument("--readme", type=Path, metavar="README", help="fill its table, too")


def _report(args: argparse.Namespace) -> int:
    from . import report
    from .results import read

    files = {path: read(path) for path in args.results}
    for path, results in files.items():
        print(*report.write(results, path.parent, path.stem), sep="\n")
    if args.readme:
        summaries = [report.summary(results) for results in files.values()]
        summaries.append(report.goal_table(list(files.values())))
        args.readme.write_text(report.insert(args.readme.read_text(), summaries))
    return 0


def _add_compare(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("compare", help="two results files side by side")
    command.set_defaults(run=_compare)
    command.add_argument("a", type=Path, metavar="A")
    command.add_argument("b", type=Path, metavar="B")


def _compare(args: argparse.Namespace) -> int:
    from .compare import compare
    from .results import read

    print(compare(read(args.a), read(args.b)), end="")
    return 0


def _add_host(commands: argparse._SubParsersAction) -> None:
    from .step import NETWORKS

    command = commands.add_parser(
        "host", help="what a training step costs the host, on a GPU that does nothing"
    )
    command.set_defaults(run=_host)
    command.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS)


def _host(args: argparse.Namespace) -> int:
    from .step import table

    print(table(args.networks))
    return 0


def _add_gpu(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "gpu",
        help="tests, benchmarks and report, each bounded in seconds",
        description="Runs each step that has seconds to run in.  The networks and tuning "
        "want 540 each, in calls of their own: --tests 0 --quick 0 --networks 540.",
    )
    command.set_defaults(run=_gpu)
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    for name, seconds in SECONDS.items():
        command.add_argument(f"--{name}", type=float, default=seconds, metavar="SECONDS")


def _gpu(args: argparse.Namespace) -> int:
    from . import gpu

    seconds = {name: getattr(args, name) for name in SECONDS}
    return gpu.run(args.out, gpu.steps(args.out, seconds))


if __name__ == "__main__":
    sys.exit(main())
