"""Workers as forks: what a forked program has, when nothing is forked, and what must not be in the process by then."""

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from cluster.fork_server import GPUS, OFF, fork_server
from cluster.forked_worker import SOCKET, forked, plain_worker

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, signal, sys
print(json.dumps({
    "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path, "environment": dict(os.environ),
    "group": os.getpgid(0) == os.getpid(), "parent": os.getppid(), "stdin": sys.stdin.read(),
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "oom_score_adj": open("/proc/self/oom_score_adj").read(), "preloaded": "colorsys" in sys.modules,
    "main": __name__,
}), file=sys.stderr)
"""
RAYS_OWN = str(Path(str(find_spec("ray").origin)).parent / "thirdparty_files")  # type: ignore[union-attr]
FLAGS = ["--language=PYTHON"]
NOT_FORKED = "workers were started one by one, not forked: "
forks = pytest.mark.skipif(any(map(os.path.exists, GPUS)), reason="where there is a GPU, nothing is forked")


@pytest.fixture
def server() -> Iterator[dict[str, str]]:
    with fork_server("colorsys") as found:
        yield found


def asked(arguments: list[str], found: dict[str, str], **more: object) -> subprocess.CompletedProcess[str]:
    """What Ray would do to start a worker, and all that it prints until its end."""
    return subprocess.run(
        [sys.executable, ROOT / "cluster" / "forked_worker.py", *arguments], env=os.environ | {"MINE": "1"} | found,
        text=True, capture_output=True, check=False, timeout=60, input="from stdin", **more,
    )  # fmt: skip


@forks
def test_a_forked_program_has_what_it_would_have_had(server: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    context = json.dumps({"env_vars": {"FOR_ME": "2"}, "py_executable": sys.executable, "java_jars": []})
    flags = [str(program), "--worker-id=7", "--language=PYTHON", f"--serialized-runtime-env-context={context}"]

    def blocked() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        Path("/proc/self/oom_score_adj").write_text("900")

    done = asked(flags, server, cwd=tmp_path, preexec_fn=blocked)
    told = json.loads(done.stderr)
    assert told["preloaded"]
    assert told["parent"] in [child.pid for child in psutil.Process().children()]  # the server
    assert told["arguments"] == [str(program), "--worker-id=7"]
    assert (told["folder"], told["main"]) == (str(tmp_path), "__main__")
    assert told["path"][:2] == [RAYS_OWN, str(tmp_path)]  # Ray puts its own first, at its import
    assert told["environment"].items() >= {"MINE": "1", "FOR_ME": "2", SOCKET: server[SOCKET]}.items()
    assert "OPENBLAS_NUM_THREADS" not in told["environment"]
    assert told["group"]
    assert (told["stdin"], told["blocked"], told["oom_score_adj"]) == ("from stdin", [signal.SIGINT], "900\n")


def test_without_a_server_it_becomes_what_ray_would_have_started(tmp_path: Path) -> None:
    program, setup = tmp_path / "default_worker.py", tmp_path / "setup_worker.py"
    setup.write_text("import sys; print(sys.argv[1:])")
    for found in ({}, {SOCKET: str(tmp_path / "nobody")}):
        done = asked([str(program), *FLAGS], found)
        assert done.stdout == f"{[str(program), *FLAGS]}\n"


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({}, True),
        ({"env_vars": {"A": "b"}}, True),
        ({"env_vars": {"PATH": "${PATH}:/more"}}, False),
        ({"py_executable": "uv run python"}, False),
        ({"command_prefix": ["conda activate x &&"]}, False),
        ({"something new": 1}, False),
    ],
)
def test_an_environment_that_only_ray_can_make_is_left_to_it(given: dict[str, object], plain: bool) -> None:
    arguments = ["worker.py", *FLAGS, f"--serialized-runtime-env-context={json.dumps(given)}"]
    assert (plain_worker(arguments) is not None) == plain
    assert plain_worker(["worker.py", "--language=JAVA"]) is None
    assert plain_worker(["-s", "worker.py", *FLAGS]) is None


@forks
def test_a_message_that_the_kernel_refuses_is_no_worker_lost(
    server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, server[SOCKET])
    assert not forked({"environment": {"LONG": "x" * (1 << 20)}})


def test_where_it_is_switched_off_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFF, "0")
    with fork_server("colorsys") as found:
        assert found == {}
        assert not psutil.Process().children()


def test_where_there_is_a_gpu_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.fork_server.GPUS", ("/dev/kfd", "/dev/null"))
    with fork_server("colorsys") as found:
        assert found == {}
        assert not psutil.Process().children()


def test_where_no_socket_can_be_made_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with fork_server("colorsys") as found:
        assert found == {}


@forks
def test_a_process_with_threads_is_not_forked_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with fork_server("threaded") as found:
        (server,) = psutil.Process().children()
        server.wait(timeout=60)  # it ends by itself
        monkeypatch.setenv(SOCKET, found[SOCKET])
        assert not forked({})
    name = Path(sys.executable).name
    assert capfd.readouterr().err == f"{NOT_FORKED}what is imported starts threads ({name}, {name})\n"


@forks
def test_what_cannot_be_imported_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with fork_server("no_such_module"):
        (server,) = psutil.Process().children()
        server.wait(timeout=60)
    assert capfd.readouterr().err == f"{NOT_FORKED}ModuleNotFoundError: No module named 'no_such_module'\n"


@forks
def test_it_ends_with_its_parent_and_clears_up_after_it() -> None:
    script = """
from cluster.fork_server import fork_server
with fork_server("colorsys") as found:
    print(*found.values(), flush=True)
    input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    try:
        path = Path(parent.stdout.readline().strip())
        assert path.is_socket()
        (server,) = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    server.wait(timeout=60)
    assert not path.parent.exists()


@forks
def test_what_is_preloaded_can_be_forked() -> None:
    """Ray seeds its identifiers and reads the environment once, at its import: forks would share both."""
    look = """
import sys
import jobs.preload
from cluster.fork_server import obstacle
assert obstacle() is None
print([name for name in sys.modules if name.partition('.')[0] == 'ray'])
assert all(name in sys.modules for name in ("torch", "deepspeed", "transformers.models.llama.modeling_llama"))
"""
    single = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, env=single, text=True, capture_output=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_what_is_replaced_is_there_upstream() -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    workers = Path(spec.origin).parent / "_private" / "workers"
    source = (workers / "setup_worker.py").read_text()
    assert (workers / "default_worker.py").is_file()
    assert source.count("parser.add_argument(") == 2
    assert '"--serialized-runtime-env-context"' in source
    assert '"--language"' in source
    from ray._private.runtime_env.context import RuntimeEnvContext

    known = {"self", "command_prefix", "env_vars", "py_executable", "override_worker_entrypoint", "java_jars"}
    assert set(inspect.signature(RuntimeEnvContext.__init__).parameters) == known
