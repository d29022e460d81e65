"""Which share of a GPU a trial gets, by what was measured of its kind. Pure.

Shares are 1/2, 1/3 and 1/4, so that a whole number of them fills a card.
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 1.25  # on what torch had at its peak: other orders of examples bring longer rows together, allocators fragment
MOST = 4  # trials on a card: without MPS their kernels take turns, so each more gains less


@dataclass(frozen=True)
class Measure:
    """Bytes of a worker: peak_bytes of torch's allocator, outside_bytes of CUDA beside it; total_bytes of the card."""

    peak_bytes: int
    outside_bytes: int
    total_bytes: int

    def joined(self, other: Measure) -> Measure:
        """For both: the largest need and the smallest card, since a larger one only has more room."""
        return Measure(
            max(self.peak_bytes, other.peak_bytes),
            max(self.outside_bytes, other.outside_bytes),
            min(self.total_bytes, other.total_bytes),
        )

    @property
    def need(self) -> float:
        """Bytes that a share must have."""
        return self.peak_bytes * MARGIN + self.outside_bytes


def parts(measure: Measure, at_most: int = MOST) -> int:
    """How many such trials a card takes. at_most: what is known of shares that were too small."""
    fit = (n for n in range(min(at_most, MOST), 1, -1) if measure.need * n <= measure.total_bytes)
    return next(fit, 1) if measure.peak_bytes > 0 else 1  # 0: nobody could tell


def share(count: int) -> float:
    """Of a GPU, as Ray is asked for it: the same number wherever a card is cut in so many parts."""
    return 1.0 / count


def parts_of(gpus: float) -> int:
    """In how many parts a card was cut for such a share; 1 for a whole one."""
    return max(1, round(1 / gpus)) if 0 < gpus < 1 else 1


def after_out_of_memory(had: int, now: int) -> int | None:
    """In how many parts to cut from now on, after a trial ran out of memory in 1/had and its kind is cut 1/now now.

    None: it had the whole card, so it must take fewer sequences at once.
    """
    if had <= 1:
        return None
    return min(now, had - 1)  # another lane may have asked for more meanwhile


def in_words(count: int) -> str:
    return "a whole GPU" if count == 1 else f"1/{count} of a GPU"
