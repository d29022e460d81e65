"""The real thing for the integration tests: backbones pre-trained once, the CLI as a user calls it."""

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

from jobs.files import locked

ROOT = Path(__file__).parents[2]
STEPS = (0, 60)
T = TypeVar("T")
# Minutes each: `make test-long` runs them, not CI
LONG = ("test_quickstart.py::", "test_sharing.py::", "test_startup_", "::test_twenty_times_")
# Never two of them at a time: Ray's workers take their ports from one range; both change the machine's network; or one
# fixture serves all of a file
TOGETHER = {
    "heads": ("address", "doctor", "gpu_share", "growth", "redis", "rendered_cluster", "sharing", "submit"),
    "machines": ("compose", "hosts"),
    "vllm": ("vllm",),
}
# Minutes each: of two tests at a time, the last should be short; heads, the largest group, begin in any case
FIRST = ("test_sweep.py",)
LATER = {"test_compose.py": "test_hosts.py"}  # in the place of another file: by then its image is there


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.path.name not in FIRST, LATER.get(item.path.name, item.path.name)))
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if any(name in item.nodeid for name in LONG):
                item.add_marker(pytest.mark.long)


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of a group one after another on one of pytest-xdist's workers; any other wherever there is room.

    Its own `--dist loadgroup` marks tests by an attribute that pytest 9.2 does not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
        return next((group for group, files in TOGETHER.items() if file in files), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip in a file that $CI_REQUIRES names is a failure: what cannot run there is not tested at all."""
    report = yield
    required = os.environ.get("CI_REQUIRES", "").split()
    if report.skipped and item.path.stem.removeprefix("test_") in required:
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"CI_REQUIRES names {item.path.name}, yet it was skipped. {reason}"
    return report


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest-xdist's workers share, for what costs seconds of CPU to make."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def backbones(made_once: Path) -> Path:
    """A storage root that holds the built-in backbones of these tests, and the GGUF files that were unpacked."""
    from jobs.pretrain import pretrain

    root = made_once / "backbones"
    with locked(root / "lock", timeout_s=300):
        pretrain(root, "char-llama", STEPS)
    return root


@pytest.fixture(scope="session")
def empty_mlflow(made_once: Path) -> Path:
    """MLflow's database as it is after all its migrations, which cost more than many a sweep."""
    root = made_once / "mlflow"
    with locked(root / "lock", timeout_s=300):
        if not (root / "mlflow.db").exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            store = SqlAlchemyStore(f"sqlite:///{root / 'mlflow.db'}", str(root / "unused"))
            store.engine.dispose()
    return root / "mlflow.db"


@pytest.fixture
def storage(backbones: Path, empty_mlflow: Path, tmp_path: Path) -> Path:
    """A fresh storage that shares pre-trained backbones and tasks as token ids, and begins with an empty database."""
    root = tmp_path / "storage"
    root.mkdir()
    (backbones / "tokens").mkdir(exist_ok=True)
    for shared in ("backbones", "tokens"):
        (root / shared).symlink_to(backbones / shared)
    shutil.copy(empty_mlflow, root)
    return root


def sweeper(
    *args: object, storage: Path, timeout: float = 900, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sweeper", *map(str, args), "--storage", str(storage)],
        cwd=ROOT,
        env=environment() | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SWEEPER_", "MLFLOW_", "RAY_"))}
    return clean | {"PYTHONUNBUFFERED": "1"}


def write_spec(folder: Path, **parts: Any) -> Path:
    """A sweep file (JSON is YAML) on the small backbones; one lane unless told, since each takes seconds to start."""
    spec = {
        "name": "small",
        "concurrency": 1,
        "grid": {
            "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
            "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
            "objective": ["nll", "one-minus-p"],
            "seed": [1],
        },
        "train": {"lr": 1e-3, "batch_size": 32, "steps": 30, "max_length": 32, "checkpoint_every": 10},
        "evaluation": {"samples": 2, "max_new_tokens": 4, "batch_size": 64},
    } | parts
    path = folder / f"{spec['name']}.yaml"
    path.write_text(json.dumps(spec))
    return path


def until(what: str, found: Callable[[], T | None], timeout_s: float = 600, every_s: float = 0.05) -> T:
    """Wait for a condition."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(every_s)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def free_port() -> int:
    """Above the ports of Ray's workers and below the ephemeral ones, which Ray's own processes take meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Head:
    """A head node with two CPUs and a token of its own, which may die and be started again where it was.

    address: Ray's; api: the Jobs API's; secret: the environment that gets in
    cpus, options, env: what it offers, more flags of `ray start`, and what stands in its environment
    """

    cpus = 2

    def __init__(self, token: Path) -> None:
        self.options: list[str] = []
        self.env: dict[str, str] = {}
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.port, self.dashboard, self.others = free_port(), free_port(), [free_port(), free_port()]
        self.address, self.api = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.dashboard}"
        # a job looks its cluster up in a file there; short, for sockets lie below it
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--num-cpus={self.cpus}",
            f"--port={self.port}", "--node-ip-address=127.0.0.1", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
            f"--dashboard-agent-listen-port={self.others[0]}", f"--ray-client-server-port={self.others[1]}",
            "--disable-usage-stats", f"--temp-dir={self.folder}", *self.options,
        ]  # fmt: skip
        own = self.folder / "ray_current_cluster"  # written last
        own.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            command, env=environment() | self.secret | self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until("the head", lambda: own.exists() and answers(self.port) and answers(self.dashboard), timeout_s=120)

    def die(self) -> None:
        """kill -9 of the node and of all that runs on it, drivers too: what a machine does that loses its power."""
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.process.pid)
            for process in [started, *started.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(timeout=60)
        until("its ports", lambda: not answers(self.port) and not answers(self.dashboard), timeout_s=60)

    def end(self) -> None:
        """Not in order, for which Ray takes up to half a minute."""
        self.die()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """Gone with the test."""
    head = Head(tmp_path / "token")
    head.start()
    try:
        yield head
    finally:
        head.end()
