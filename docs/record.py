"""Makes docs/recording.md anew: the commands of a sweep on a cluster, typed one after another, with what they printed.

    python docs/record.py

Starts a Ray head with two CPUs and a token of its own on this machine, and ends it. Takes about four minutes.
"""

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = """\
name: recorded
grid:
  backbone: [{builtin: char-llama, pretrain_steps: 60}]
  task: [{builtin: addition, noise: 0.3, heldout_examples: 64}]
  objective: [nll, one-minus-p]
train: {lr: 1e-3, batch_size: 32, steps: 1500, max_length: 32, checkpoint_every: 50, log_every: 50}
evaluation: {samples: 2, max_new_tokens: 4, batch_size: 64}
"""
HEAD = """\
# A recording

Submit, detach, look, stop, resume: what a terminal shows, as it was printed on {date} on one machine with two CPUs.
`python docs/record.py` types these commands again; `tests/integration/test_submit.py` runs the same ones and looks at
what they do. All of them take `--address` and `--storage`, left out below after the first.

```yaml
{spec}```
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recorded.yaml").write_text(SPEC)
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "token").chmod(0o600)
        env = os.environ | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        ray = Path(sys.executable).parent / "ray"
        ports = ["--port=26379", "--dashboard-port=28265", "--dashboard-agent-listen-port=25365"]
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
             "--include-dashboard=true", "--dashboard-host=127.0.0.1", *ports, f"--temp-dir={folder / 'ray'}"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            text = record(folder, env)
        finally:
            head.terminate()
            head.wait()
    (ROOT / "docs" / "recording.md").write_text(text)


def record(folder: Path, env: dict[str, str]) -> str:
    where = ["--address", "http://127.0.0.1:28265", "--storage", str(folder / "storage")]

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sweeper", *words, *where, "--python", sys.executable], cwd=folder, env=env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def shown(*words: str, first: bool = False, last_lines: int | None = None) -> str:
        started = time.monotonic()
        lines = run(*words).rstrip().splitlines()
        if last_lines is not None and len(lines) > last_lines:
            lines = ["...", *lines[-last_lines:]]
        took = time.monotonic() - started
        options = " --address http://127.0.0.1:8265 --storage /shared/sweeps" if first else ""
        typed = f"$ sweeper {' '.join(words)}{options}"
        return plain("\n".join([typed, *lines, f"# {took:.0f} s"]), folder)

    for _ in range(120):
        if "cluster up" not in run("list") and not run("list").startswith("no Ray"):
            break
        time.sleep(1)
    parts = [shown("submit", "recorded.yaml", first=True)]
    while "step" not in run("status", "recorded", "--json") or not trained(folder):
        time.sleep(1)
    parts += [shown("status", "recorded"), shown("logs", "recorded", last_lines=6), shown("stop", "recorded")]
    parts += [shown("stop", "recorded"), shown("list")]
    parts += [shown("resume", "recorded"), shown("logs", "-f", "recorded", last_lines=8), shown("wait", "recorded")]
    parts += [shown("status", "recorded"), shown("list")]
    blocks = "\n\n".join(f"```console\n{part}\n```" for part in parts)
    return HEAD.format(date=time.strftime("%Y-%m-%d"), spec=SPEC) + "\n" + blocks + "\n"


def trained(folder: Path) -> bool:
    """Whether a trial is in the middle, with a checkpoint."""
    return any((folder / "storage" / "trials").glob("*/checkpoints/*/COMPLETE"))


def plain(text: str, folder: Path) -> str:
    """Without this machine's paths and ports."""
    text = text.replace(str(folder / "storage"), "/shared/sweeps").replace(str(folder), "~").replace(":28265", ":8265")
    return re.sub(r"\x1b\[[0-9;]*m", "", text.replace(str(ROOT), "~/objective-continuum"))


if __name__ == "__main__":
    main()
