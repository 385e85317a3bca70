# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks run | report | plot`: see README.md beside this file."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.peers import PEERS
from benchmarks.suite import LIMIT_S, STOP_S, WORKLOADS, Options, Suite

_HERE = Path(__file__).parent
_BUILD = _HERE.parent / "build" / "benchmarks"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="milepost beside other libraries.")
    parser.add_argument("--results", type=Path, default=_BUILD / "results.jsonl", help="lines are appended here")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="measure")
    run.add_argument("--workloads", default=",".join(WORKLOADS), help="some of: %(default)s")
    run.add_argument("--peers", help=f"some of: {','.join(PEERS)}")
    run.add_argument("--folder", type=Path, default=_BUILD, help="on the disk to be measured")
    run.add_argument("--rounds", type=int, default=5)
    run.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for a peer in a workload")
    run.add_argument("--stop", type=float, default=STOP_S, help="seconds for one operation")
    run.add_argument("--quick", action="store_true", help="tiny states: whether it works, not how fast")
    run.add_argument("--no-back-memory", action="store_true", help="do not touch free memory beforehand")
    report = verbs.add_parser("report", help="write the tables from the last run of each workload")
    report.add_argument("--output", type=Path, default=_HERE / "RESULTS.md")
    plot = verbs.add_parser("plot", help="draw the last run of each workload")
    plot.add_argument("--output", type=Path, default=_BUILD, help="a folder")
    given = parser.parse_args()
    if given.verb == "run":
        names = given.workloads.split(",")
        if unknown := set(names) - set(WORKLOADS):
            parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
        options = Options(
            given.folder, given.results, given.rounds, given.limit, given.stop, given.quick, not given.no_back_memory
        )
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was written is removed then too
        Suite(options).do(names, given.peers.split(",") if given.peers else None)
        return
    from benchmarks.report import Results

    results = Results.read(given.results)
    if given.verb == "report":
        given.output.write_text(results.page())
        return
    from benchmarks.plots import draw

    for path in draw(results, given.output):
        print(path)


if __name__ == "__main__":
    main()
