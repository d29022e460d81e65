"""What Tune sees of a trial: a small trainable that posts it to the board and passes its rows on. No torch here."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

from jobs.yardsticks import YARDSTICKS
from sweeper.board import ENDS


class Cell(tune.Trainable):
    """Reused for one trial after another (reset_config), so that Tune starts one process a slot, not a trial."""

    def setup(self, config: dict[str, Any], board: Any = None, max_failures: int = 0) -> None:
        self.board, self.max_failures = board, max_failures
        self._begin(config["key"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config["key"])
        return True

    def _begin(self, key: str) -> None:
        self.key, self.failures, self.posted, self.over = key, 0, False, False

    def step(self) -> dict[str, Any]:
        """The next evaluation or the end; a trial whose worker died is posted again, from its checkpoint."""
        if not self.posted:  # not when set up: Tune may set two cells up for a trial, and let only one of them step
            self.posted = True
            ray.get(self.board.post.remote(self.key))
        while True:
            message = ray.get(self.board.listen.remote(self.key))
            if message["kind"] == "failed" and message["died"] and self.failures < self.max_failures:
                self.failures += 1
                ray.get(self.board.post.remote(self.key))
                continue
            break
        row = message.get("row", {})
        self.over = message["kind"] in ENDS
        return {
            **{name: row.get(name, float("nan")) for name in (*YARDSTICKS, "data/train_cut")},
            "step": int(row.get("step", 0)),
            "status": message["kind"],
            "error": message.get("error", ""),
            "done": self.over,
        }

    def cleanup(self) -> None:
        """Tune stopped the trial before its end: the lane hears of it at its next evaluation."""
        if self.posted and not self.over:
            ray.get(self.board.cancel.remote(self.key))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints lie in the trial's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see save_checkpoint."""
