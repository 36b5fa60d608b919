"""The command line: python -m benchmarks COMMAND, from the checkout's root."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "python -m benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Measure tritonconv's speed.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_run,
        _add_report,
        _add_compare,
        _add_choose,
        _add_regret,
        _add_host,
        _add_sweep,
    ):
        add(commands)
    args = parser.parse_args(argv)
    return args.run(args)


def _add_run(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("run", help="measure; write a results file")
    command.set_defaults(run=_run)
    command.add_argument("-m", "--markers", default="quick", help="quick (default), full")
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
    command.add_argument("--results", type=Path, metavar="FILE", help="write them there, too")


def _host(args: argparse.Namespace) -> int:
    from .step import table

    print(table(args.networks, args.results))
    return 0


def _add_choose(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "choose", help="the best of a results file's configurations into the package"
    )
    command.set_defaults(run=_choose)
    _add_results_of_here(command)


def _choose(args: argparse.Namespace) -> int:
    from .choose import write_table

    print(write_table(_results_of_here(args)))
    return 0


def _add_regret(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "regret", help="how far the choices of kernels are from a results file's best"
    )
    command.set_defaults(run=_regret)
    _add_results_of_here(command)


def _regret(args: argparse.Namespace) -> int:
    from .regret import report

    print(report(_results_of_here(args)))
    return 0


def _add_results_of_here(command: argparse.ArgumentParser) -> None:
    command.add_argument("results", type=Path, metavar="FILE")
    command.add_argument(
        "--force", action="store_true", help="though it is of another form, commit or GPU"
    )


def _results_of_here(args: argparse.Namespace) -> dict:
    from .results import differences, read

    results = read(args.results)
    if results["machine"].get("capability", "none") == "none":
        raise SystemExit(_refused(f"{args.results}: its times are no GPU's"))
    different = differences(results)
    if different:
        print(f"{PROGRAM}: {args.results}: {'; '.join(different)}", file=sys.stderr)
        if not args.force:
            raise SystemExit(2)
    return results


def _add_sweep(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "sweep",
        help="all there is to measure on a GPU, in so many seconds",
        description="Measures networks, layers, every configuration of their kernels, and "
        "counters, what matters most first; ends 10 seconds before SECONDS have passed.",
    )
    command.set_defaults(run=_sweep)
    command.add_argument("--seconds", type=float, required=True, help="60 at least")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--rows", default="", metavar="REGEX", help="(default: all)")
    command.add_argument("--tests", type=float, default=0, help="seconds for the suite, first")
    command.add_argument(
        "--counters",
        nargs="*",
        metavar="ROW",
        help="for Nsight Compute (default: a list, where it is installed)",
    )
    command.add_argument("--dry", action="store_true", help="on a device that does nothing")


def _sweep(args: argparse.Namespace) -> int:
    import torch

    from . import counters
    from .device import NO_GPU
    from .plan import tasks
    from .sweep import Wanted, sweep

    if args.seconds < 60:
        return _refused(f"--seconds must be 60 at least, got {args.seconds:g}")
    if not (args.dry or torch.cuda.is_available()):
        return _refused(f"{NO_GPU}; --dry walks through the same steps")
    if args.counters and not counters.installed():
        return _refused("--counters needs Nsight Compute: there is no ncu on the path")
    if args.counters is None:
        args.counters = counters.ROWS if counters.installed() and not args.dry else ()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").touch()
    except OSError as error:
        return _refused(f"--out: cannot write there: {error}")
    wanted = Wanted(tasks(args.rows), tuple(args.counters), args.tests, args.dry)
    results = sweep(wanted, args.out, args.seconds)
    print(f"results  {results.path}")
    print(f"{len(results.left_out)} tasks left out, {len(results.failed)} calls failed")
    return bool(results.failed)


def _refused(why: str) -> int:
    print(f"{PROGRAM}: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
