"""What commands have in common: their options, and where storage, data and MLflow are by default."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sweeper.places import NO_SUPPORT, SCHEME, folder, jobs_address
from sweeper.store import Store, StoreError

if TYPE_CHECKING:
    from sweeper.spec import SweepSpec

# set for what runs on a cluster as a job: its defaults are the cluster's, never a job's folder
ON_CLUSTER = "SWEEPER_ON_CLUSTER"
OWNER = "SWEEPER_OWNER"  # for a job on a cluster, where all run as one user


def add(
    commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int], on_cluster: bool = False
) -> argparse.ArgumentParser:
    """A command; on_cluster: with a Jobs API's --address the cluster answers it, where the storage is."""
    sub = commands.add_parser(
        name,
        help=text.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0],
        description=text,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,  # --addr would travel to the cluster, and be asked there again
    )
    sub.set_defaults(command=run, on_cluster=on_cluster)
    sub.add_argument(
        "--storage",
        metavar="DIR",
        type=folder,
        default=None,
        help="where trials are recorded (default: $SWEEPER_STORAGE or ./sweeps)",
    )
    return sub


def json_option(sub: argparse.ArgumentParser, text: str = "for programs") -> None:
    sub.add_argument("--json", action="store_true", help=text)


def spec_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("spec", metavar="SPEC", type=Path, help="the sweep's YAML file")
    sub.add_argument(
        "--data-root",
        metavar="DIR",
        type=Path,
        help="where relative paths in SPEC start (default: $SWEEPER_DATA or the folder of SPEC)",
    )
    sub.add_argument("--profile", metavar="NAME", help="one of the file's profiles, merged over it")
    sub.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one value, e.g. train.steps=4 or grid.objective.0=nll; may be repeated",
    )
    sub.add_argument(
        "--lanes", choices=("on", "off"), help="off: a worker group for each trial (the same as --set lanes=false)"
    )


def sweep_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("sweep", metavar="SWEEP", help="the sweep's name")


def tracking_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--tracking-uri",
        metavar="URI",
        type=_without_login,
        help="MLflow (default: $MLFLOW_TRACKING_URI, else the sweep's own, else sqlite in the storage)",
    )


def _without_login(uri: str) -> str:
    """It would be seen in the record, the report and the list of processes. The message does not repeat it."""
    parts = urlsplit(uri)
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        raise argparse.ArgumentTypeError(
            "a login does not belong in MLflow's address; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            "where the sweep runs (on a cluster: on its nodes), or what a database's client reads, such as PGPASSWORD"
        )
    return uri


def given_uri(args: argparse.Namespace) -> str | None:
    """--tracking-uri, else $MLFLOW_TRACKING_URI of this process. Only the former is said to a cluster."""
    try:
        return args.tracking_uri or _without_login(os.environ.get("MLFLOW_TRACKING_URI", "")) or None
    except argparse.ArgumentTypeError as error:
        raise ConnectionError(f"$MLFLOW_TRACKING_URI: {error}") from None


def cluster_options(
    sub: argparse.ArgumentParser, needed: bool = False, address: str | None = None, or_ray: bool = False
) -> None:
    """address: help for --address where it may be more than a Jobs API's; or_ray: it may be Ray's own, for a job."""
    default = "" if needed else " (default: this machine's storage)"
    sub.add_argument(
        "--address",
        metavar="URL",
        type=str if address or or_ray or needed else jobs_address,
        required=needed,
        help=address or f"of a cluster's Jobs API, http://HEAD:8265{default}",
    )
    sub.add_argument("--python", default="python", metavar="PATH", help="interpreter on the cluster")
    sub.add_argument("--no-ship", action="store_true", help="use the package that the cluster has")
    sub.add_argument("--insecure", action="store_true", help="the cluster asks for no token, and that is meant")


def sweep_of(args: argparse.Namespace) -> SweepSpec:
    """The sweep file with its profile and single values. Raises SpecError."""
    from sweeper.spec import load_sweep

    lanes = getattr(args, "lanes", None)
    sets = [*getattr(args, "set", ()), *([f"lanes={'true' if lanes == 'on' else 'false'}"] if lanes else [])]
    return load_sweep(args.spec, getattr(args, "profile", None), sets)


def storage_of(args: argparse.Namespace) -> Path:
    """--storage, else $SWEEPER_STORAGE, else ./sweeps; on a cluster the last would be a job's own folder."""
    if args.storage is not None:
        return Path(args.storage)
    if "SWEEPER_STORAGE" not in os.environ and ON_CLUSTER in os.environ:
        raise StoreError("the cluster declares no storage ($SWEEPER_STORAGE on its nodes); name one with --storage")
    named = os.environ.get("SWEEPER_STORAGE", "sweeps")
    if SCHEME.match(named):
        raise StoreError(f"$SWEEPER_STORAGE {named}: {NO_SUPPORT}")
    return Path(named)


def data_root_of(args: argparse.Namespace) -> Path:
    if args.data_root is not None:
        return Path(args.data_root)
    return Path(os.environ["SWEEPER_DATA"]) if "SWEEPER_DATA" in os.environ else Path(args.spec).parent


def owner() -> str:
    """Who runs this command; of a job on a cluster, who submitted it."""
    try:
        return os.environ.get(OWNER) or getpass.getuser()
    except (KeyError, OSError):  # no name for the user of a container
        return f"user {os.getuid()}"


def is_remote(args: argparse.Namespace) -> bool:
    return str(getattr(args, "address", None) or "").startswith(("http://", "https://"))


def tracking_uri_of(args: argparse.Namespace, store: Store, sweep: str | None) -> str:
    from sweeper.tracking import default_uri

    if given := given_uri(args):
        return given
    return str(store.plan(sweep)["tracking_uri"]) if sweep else default_uri(store.root)
