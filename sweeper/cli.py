"""The command line.

Exit status: 0 all trials done, 1 some failed or are not done, 2 the input was wrong, 130 it was stopped (Ctrl-C,
SIGTERM, `sweeper stop`).
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence

from cluster.growth import GrowthError
from cluster.resources import PlacementError
from cluster.strict import ValuesError
from cluster.submit import STOPPED
from jobs.backbone import BackboneError
from jobs.sources import TaskError
from sweeper import (
    commands_cluster,
    commands_doctor,
    commands_forecast,
    commands_local,
    commands_probe,
    commands_recommend,
    commands_render,
)
from sweeper.options import is_remote, storage_of
from sweeper.places import FULL, words
from sweeper.spec import SpecError
from sweeper.store import StoreError

INPUT_ERRORS = (
    SpecError,
    TaskError,
    BackboneError,
    StoreError,
    PlacementError,
    ValuesError,
    GrowthError,
    ConnectionError,
)

DESCRIPTION = """\
Which SFT objective should I use for this backbone on this task? Measure it.

A sweep is a YAML file: backbones x tasks x objectives (with alpha and gate) x seeds. sweeper plans it,
trains each trial with DeepSpeed on Ray, records it in MLflow, and reports which objective wins where,
and how sure that is.

  sweeper plan examples/quickstart.yaml     what would be trained, and what it costs
  sweeper run examples/quickstart.yaml      train it; run it again to continue after any death
  sweeper status quickstart                 where it stands
  sweeper report quickstart                 the answer: HTML, PNG, CSV
  sweeper ui                                compare the runs in MLflow
  sweeper recommend --backbone B --task T   what to take where nothing was trained yet, and how sure that is

On a cluster: submit instead of run; then status, logs, stop, resume, wait, list, report with the same --address.

  sweeper doctor my-sweep.yaml --address http://HEAD:8265 --storage /shared/sweeps
  sweeper submit my-sweep.yaml --address http://HEAD:8265 --storage /shared/sweeps
  sweeper logs -f my-sweep --address http://HEAD:8265

A cluster for it: sweeper cluster render writes files for Kubernetes, AWS, Google Cloud or machines of your own.
"""


def main(argv: Sequence[str] | None = None) -> int:
    gc.set_threshold(100_000, 20, 100)  # what is imported and planned stays; to look through it is a fifth of a start
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.on_cluster and is_remote(args):
            return commands_cluster.ask(args, list(sys.argv[1:] if argv is None else argv))
        if "storage" in args:  # what only writes files has none
            args.given_storage, args.storage = args.storage, storage_of(args)
        return command(args)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # `sweeper plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except INPUT_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        said = words(error, vars(args).values())
        if said is None:
            raise
        print(said, file=sys.stderr)
        return 1 if error.errno in FULL else 2
    finally:
        gc.freeze()  # the process ends: to look for garbage in all its modules first takes up to 0.7 s


def _interrupt(*_: object) -> None:
    """SIGTERM ends like Ctrl-C: MLflow runs are closed and Ray goes down with us."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sweeper", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands_local.add_commands(commands)
    commands_cluster.add_commands(commands)
    commands_doctor.add_commands(commands)
    commands_render.add_commands(commands)
    commands_probe.add_commands(commands)
    commands_forecast.add_commands(commands)
    commands_recommend.add_commands(commands)
    return parser
