"""Signed hashing on a GPU: the map of `sparse.py` at memory speed.

A coordinate is hashed once, in registers, for all prompts of the tile; only the gradients are read.
Such a kernel is limited by the scatter: an add to a random address costs the L2 cache one access,
however many neighbouring numbers it includes. So the sums are stored as [dim, P] with prompts as
the fast axis: a kept coordinate adds to P neighbouring numbers, of which 32 are one 128-byte line
and four are one instruction. The sums stay in the L2 cache (1 MiB at 8192 dimensions).

The order of float additions varies from run to run, so sums vary in their last bits. With
`reproducible` they are 64-bit fixed point, where the order does not matter, and the same tiles give
the same bits on every run; that reads gradients twice and adds 8 bytes instead of 4.

This module needs triton: import it only where that is installed. Tests compare it with
`SparseSketch.coordinates`.

Shape legend: P prompts, R rows and I columns of a parameter seen as a matrix, D the dimensions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Gradients that a program of 128 threads holds at once."""

SPARSE_LOADS = 0.1
"""Ratio below which masked loads save traffic: many 32-byte sectors hold no kept coordinate."""

FRACTION_BITS = 40
"""Binary places below the largest gradient of a prompt in fixed point, leaving 2^22 of headroom."""

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit  # type: ignore[untyped-decorator]
def _mix64(places: tl.tensor, key: tl.tensor) -> tl.tensor:
    """SplitMix64 of uint64 places, as `counter_rng.mix64`."""
    state = (places + key) * GOLDEN
    state = (state ^ (state >> 30)) * MIX_1
    state = (state ^ (state >> 27)) * MIX_2
    return state ^ (state >> 31)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["offset", "mask_key", "sign_key", "threshold"]
)
def _hash_kernel(
    gradient: tl.tensor,
    rows: tl.tensor,
    unit: tl.tensor,
    sums: tl.tensor,
    prompts: tl.tensor,
    coordinates: tl.tensor,
    width: tl.tensor,
    offset: tl.tensor,
    mask_key: tl.tensor,
    sign_key: tl.tensor,
    threshold: tl.tensor,
    stride: tl.tensor,
    DIM: tl.constexpr,
    SPARSE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One block of coordinates for all prompts; elements and places are counted in 64 bits.

    `sums` [DIM, PADDED] are fp32; where `unit` [P] is given, int64 of gradients in these units.
    """
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < coordinates
    # Rows come through a load, so that the compiler does not hash again in every thread's layout.
    place = offset + tl.load(rows + c // width, mask=inside, other=0) * width + c % width
    mask_hash = _mix64(place.to(tl.uint64), tl.cast(mask_key, tl.int64).to(tl.uint64))
    sign_hash = _mix64(place.to(tl.uint64), tl.cast(sign_key, tl.int64).to(tl.uint64))
    keep = inside & ((mask_hash >> 11).to(tl.int64) < threshold)
    bucket = ((sign_hash >> 2).to(tl.int64) % DIM).to(tl.int32)
    # Bucket and sign in one small number, which is cheap to exchange between threads.
    code = tl.where(keep, bucket * 2 + (sign_hash & 1).to(tl.int32), -1)
    for start in range(0, PADDED, BLOCK_P):
        p = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        real = p < prompts
        wanted = (code >= 0) if SPARSE else inside
        address = gradient + p[:, None] * stride + c[None, :]
        value = tl.load(address, mask=real[:, None] & wanted[None, :], other=0.0).to(tl.float32)
        if unit is not None:
            value *= tl.load(unit + p, mask=real, other=0.0)[:, None]
        signed = tl.trans(value) * ((code & 1) * 2 - 1).to(tl.float32)[:, None]
        # Padded prompts add zeros, so that every add is of whole lines.
        target = sums + (code >> 1).to(tl.int64)[:, None] * PADDED + p[None, :]
        if unit is not None:
            signed = signed.to(tl.int64)
        tl.atomic_add(target, signed, mask=(code >= 0)[:, None], sem="relaxed")


def add_hashed(
    gradient_PRI: Tensor,
    rows: slice | Tensor,
    offset: int,
    keys: tuple[int, int],
    ratio: float,
    out_PD: Tensor,
    reproducible: bool = False,
) -> None:
    """Add the signed hashes of a tile of fp32 or bf16 gradients to fp32 `out_PD` [P, dim].

    `rows` (a slice with start and stop, or int64 [R]) are the tile's rows of a parameter whose
    first coordinate has the place `offset`; `keys` are those of `sparse.hash_keys`.
    """
    if not gradient_PRI.numel():
        return
    prompts, dim = out_PD.shape
    block_p = 32 if prompts % 32 > 16 or prompts % 32 == 0 else 16
    padded = triton.cdiv(prompts, block_p) * block_p
    unit_P = fixed_point_units(gradient_PRI) if reproducible else None
    dtype = torch.int64 if reproducible else torch.float32
    sums_DP = torch.zeros(dim, padded, dtype=dtype, device=out_PD.device)
    _launch(gradient_PRI, rows, offset, keys, ratio, unit_P, sums_DP, block_p)
    sums_PD = sums_DP[:, :prompts].T
    if unit_P is not None:
        sums_PD = sums_PD / unit_P.double()[:, None]
    out_PD += (sums_PD * ratio**-0.5).to(out_PD.dtype)


def fixed_point_units(gradient_PRI: Tensor) -> Tensor:
    """The power of two, fp32 [P], that takes each prompt's largest gradient just below 2^40."""
    largest_P = gradient_PRI.flatten(1).abs().amax(1).float()
    _, exponent_P = torch.frexp(largest_P)
    # Within fp32's exponents: tiny gradients have tiny sums, and zero has none.
    exponent_P = (FRACTION_BITS - exponent_P).clamp(-126, 126)
    return torch.ldexp(torch.ones_like(largest_P), exponent_P)


def _launch(
    gradient_PRI: Tensor,
    rows: slice | Tensor,
    offset: int,
    keys: tuple[int, int],
    ratio: float,
    unit_P: Tensor | None,
    sums_DP: Tensor,
    block_p: int,
) -> None:
    """Run the kernel over all coordinates of the tile."""
    prompts, _, width = gradient_PRI.shape
    flat_PC = gradient_PRI.reshape(prompts, -1)
    block_c = ELEMENTS // block_p
    if isinstance(rows, slice):
        rows = torch.arange(rows.start, rows.stop)
    rows = rows.to(flat_PC.device)
    assert rows.dtype == torch.int64, "rows must be int64"
    _hash_kernel[(triton.cdiv(flat_PC.shape[1], block_c),)](
        flat_PC,
        rows,
        unit_P,
        sums_DP,
        prompts,
        flat_PC.shape[1],
        width,
        offset,
        *keys,
        int(ratio * (1 << 53)),
        flat_PC.stride(0),
        DIM=sums_DP.shape[0],
        SPARSE=ratio < SPARSE_LOADS,
        PADDED=sums_DP.shape[1],
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )
