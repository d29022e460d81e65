"""The passes over logits on a GPU, in Triton: one that reads, one that reads and writes. The GEMMs are cuBLAS'.

As operations of torch they were five passes over fp32 logits and a cast. Triton comes with torch's CUDA builds;
elsewhere this module is never imported. `jobs/fused.py` holds the same in torch, for CPUs and float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 8  # logits that a program has at once; the fastest of 1024 to 8192 (docs/performance.md)
FLOOR = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def _statistics(
    z, target, at_target, top, total, squares, stride, SQUARES: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """A row's maximum and sum of exponentials over all but its target; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    chosen = tl.load(target + row)
    column = tl.arange(0, BLOCK)
    # where all others are masked out, p is 1 and the maximum would be -inf
    most, s, q = tl.full((), FLOOR, tl.float32), tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, VOCAB, BLOCK):
        at = start + column
        x = tl.load(z + row * stride + at, mask=(at < VOCAB) & (at != chosen), other=-float("inf"))
        new = tl.maximum(most, tl.max(x, 0))
        shrink = tl.exp(most - new)
        e = tl.exp(x - new)
        s = s * shrink + tl.sum(e, 0)
        if SQUARES:
            q = q * shrink * shrink + tl.sum(e * e, 0)
        most = new
    tl.store(at_target + row, tl.load(z + row * stride + chosen))
    tl.store(top + row, most)
    tl.store(total + row, s)
    if SQUARES:
        tl.store(squares + row, q)


@triton.jit
def _exponentials(z, rows, target, top, total, out, z_stride, out_stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """e = exp(z - top) of the rows that are named, and -total where a target stands; a program for a block of one."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < VOCAB
    e = tl.exp(tl.load(z + row * z_stride + at, mask=inside, other=0.0) - tl.load(top + row))
    e = tl.where(at == tl.load(target + row), -tl.load(total + row), e)
    tl.store(out + place * out_stride + at, e.to(out.dtype.element_ty), mask=inside)


def statistics(z: Tensor, target: Tensor, squares: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """z [n, V] fp32 and target [n] -> z at the target, and over the others: maximum, sum e, sum e^2, each [n].

    e = exp(z - maximum); squares: whether the last is wanted
    """
    n, vocab = z.shape
    at_target, top, total = (torch.empty(n, dtype=z.dtype, device=z.device) for _ in range(3))
    second = torch.empty_like(total) if squares else None
    if n:
        _statistics[(n,)](
            z, target, at_target, top, total, second if second is not None else total, z.stride(0),
            SQUARES=squares, VOCAB=vocab, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return at_target, top, total, second


def exponentials(z: Tensor, rows: Tensor, target: Tensor, top: Tensor, total: Tensor, out: Tensor) -> Tensor:
    """Fill the first len(rows) rows of `out` with exp(z - top) of the rows named, -total at their targets.

    z [n, V] fp32; target, top, total [n]; out [>= len(rows), V], which may be z itself where rows are all n in order:
    else a row would be written while another program reads it
    """
    vocab = z.shape[1]
    if len(rows):
        grid = (len(rows), triton.cdiv(vocab, BLOCK))
        _exponentials[grid](
            z, rows, target, top, total, out, z.stride(0), out.stride(0), VOCAB=vocab, BLOCK=BLOCK, num_warps=WARPS
        )
    return out[: len(rows)]
