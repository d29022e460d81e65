"""What an embedded Ray starts in place of its setup_worker.py: asks the fork server for the worker, and ends.

Without a fork server, and for a worker whose environment only Ray can make, it becomes what Ray would have started.
Seen on Ray 2.60; tests/unit/test_fork_server.py notices when what it stands for is another.
"""

import json
import os
import signal
import socket
import sys

SOCKET = "OBJECTIVE_CONTINUUM_FORK_SERVER"  # where the server listens, for programs beside it
KIND = (socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a message is whole
READY = b"ready"
MOST = 1 << 18  # bytes of a program's arguments and environment; the kernel refuses more
WAIT_S = 40.0  # for the server's imports, on a cold disk; Ray gives up on a worker after 60


def main(arguments: list[str]) -> None:
    program = plain_worker(arguments) if SOCKET in os.environ else None
    if program is None or not forked(program):
        worker = next(argument for argument in arguments if not argument.startswith("-"))
        setup = os.path.join(os.path.dirname(worker), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, setup, *arguments])


def plain_worker(arguments: list[str]) -> dict[str, object] | None:
    """What is to run, and in what surroundings. None where they are more than variables of the environment."""
    own = {"--language": "", "--serialized-runtime-env-context": "{}"}
    rest = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in own:
            own[name] = value
        else:
            rest.append(argument)
    context = json.loads(own["--serialized-runtime-env-context"])
    variables = context.pop("env_vars", {})
    unusual = [name for name, value in context.items() if value and (name, value) != ("py_executable", sys.executable)]
    if own["--language"] != "PYTHON" or unusual or rest[0].startswith("-") or "$" in "".join(variables.values()):
        return None
    with open("/proc/self/oom_score_adj") as file:
        return {
            "arguments": rest,
            "environment": {**os.environ, **variables},
            "folder": os.getcwd(),
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "oom_score_adj": file.read(),
        }


def forked(program: dict[str, object]) -> bool:
    """Whether the fork server has taken it."""
    try:
        with socket.socket(*KIND) as server:
            server.settimeout(WAIT_S)
            server.connect(os.environ[SOCKET])
            if server.recv(len(READY)) != READY:
                return False
            socket.send_fds(server, [json.dumps(program).encode()], [0, 1, 2])
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
