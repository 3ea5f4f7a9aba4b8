"""The Triton kernel is the torch path: the same coordinates, buckets and signs.

Without a GPU the kernel's own code runs in Triton's interpreter, on CPU tensors.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from cropi.sketches import SparseSketch
from cropi.sketches.sparse import hash_keys

triton = pytest.importorskip(
    "triton", reason="triton is not installed; the torch path is used instead"
)
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 5


@pytest.fixture(scope="module")
def kernel() -> Iterator[ModuleType]:
    """The module, interpreted where there is no GPU: Triton decides when it is imported."""
    before = os.environ.get("TRITON_INTERPRET")
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield importlib.import_module("cropi.sketches.triton_hash")
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def by_torch(
    gradient_PRI: Tensor, rows: slice | Tensor, offset: int, ratio: float, dim: int
) -> Tensor:
    """The definition, in float64: every coordinate to its bucket with its scaled sign."""
    prompts, _, width = gradient_PRI.shape
    listed = rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop)
    columns = torch.arange(width)
    places = (offset + listed.cpu()[:, None] * width + columns).flatten()
    mask, bucket, sign = SparseSketch({"w": (1,)}, SEED, ratio, dim).coordinates(places)
    values_PC = gradient_PRI.cpu().double().flatten(1) * (sign * mask).double()
    return torch.zeros(prompts, dim, dtype=torch.float64).index_add_(1, bucket, values_PC)


def tile(prompts: int, rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(prompts * rows + width)
    return torch.randn(prompts, rows, width, generator=generator).to(dtype).to(DEVICE)


@pytest.mark.parametrize(
    ("prompts", "height", "width", "dim"),
    [(1, 1, 1, 8), (3, 5, 7, 64), (32, 9, 33, 100), (37, 3, 41, 97), (5, 1, 4099, 512)],
)
@pytest.mark.parametrize("ratio", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("reproducible", [False, True])
def test_a_tile_of_odd_sizes_is_hashed_as_by_torch(
    kernel: ModuleType,
    prompts: int,
    height: int,
    width: int,
    dim: int,
    ratio: float,
    reproducible: bool,
) -> None:
    gradient, rows = tile(prompts, height, width), slice(2, 2 + height)
    out = torch.ones(prompts, dim, device=DEVICE)
    kernel.add_hashed(gradient, rows, 1000, hash_keys(SEED), ratio, out, reproducible)
    expected = 1 + by_torch(gradient, rows, 1000, ratio, dim)
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [2**31 - 50, 2**32 - 50, 2**33 + 7, 2**40 + 12345])
def test_places_beyond_32_bits_do_not_wrap(kernel: ModuleType, offset: int) -> None:
    gradient, out = tile(4, 3, 40), torch.zeros(4, 97, device=DEVICE)
    kernel.add_hashed(gradient, slice(1, 4), offset, hash_keys(SEED), 0.5, out)
    expected = by_torch(gradient, slice(1, 4), offset, 0.5, 97)
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    wrapped = by_torch(gradient, slice(1, 4), offset % 2**32, 0.5, 97)
    assert offset < 2**32 or not torch.allclose(expected, wrapped)


def test_rows_so_far_down_that_their_places_pass_32_bits_do_not_wrap(kernel: ModuleType) -> None:
    gradient, rows = tile(4, 3, 40), torch.tensor([5, 2**27, 2**28 + 1], device=DEVICE)
    out = torch.zeros(4, 97, device=DEVICE)
    kernel.add_hashed(gradient, rows, 11, hash_keys(SEED), 1.0, out)
    expected = by_torch(gradient, rows, 11, 1.0, 97)
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_tiles_add_up_to_the_whole_parameter(kernel: ModuleType, dtype: torch.dtype) -> None:
    gradient = tile(6, 20, 31, dtype)
    out = torch.zeros(6, 64, device=DEVICE)
    listed = torch.tensor([12, 15, 19], device=DEVICE)
    others = torch.tensor([13, 14, 16, 17, 18], device=DEVICE)
    for rows in (slice(0, 7), slice(7, 12), listed, others):
        kernel.add_hashed(gradient[:, rows], rows, 77, hash_keys(SEED), 0.4, out)
    expected = by_torch(gradient, slice(0, 20), 77, 0.4, 64)
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [slice(3, 8), torch.tensor([0, 2, 7])])
def test_a_sparse_sketch_projects_a_tile_to_the_same(
    kernel: ModuleType, rows: slice | Tensor
) -> None:
    """Through the sketch's own places and blocks: parameter b begins where a's 50 end."""
    sketch = SparseSketch({"a": (50,), "b": (8, 30)}, SEED, 0.3, 64)
    gradient = tile(4, 8, 30)[:, rows]
    out, expected = torch.zeros(4, 64, device=DEVICE), torch.zeros(4, 64)
    sketch.project("b", rows, gradient.cpu(), expected)
    kernel.add_hashed(gradient, rows, 50, hash_keys(SEED), 0.3, out)
    assert torch.allclose(out.cpu(), expected, atol=1e-5)


def test_transposed_sums_are_supported(kernel: ModuleType) -> None:
    gradient, out = tile(4, 3, 40), torch.zeros(97, 4, device=DEVICE).T
    kernel.add_hashed(gradient, slice(0, 3), 0, hash_keys(SEED), 0.5, out)
    expected = by_torch(gradient, slice(0, 3), 0, 0.5, 97)
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_fixed_point_sums_do_not_depend_on_the_order_of_additions(
    kernel: ModuleType, size: float
) -> None:
    gradient, out = tile(5, 40, 50) * size, []
    for order in (torch.arange(40), torch.randperm(40), torch.arange(39, -1, -1)):
        order = order.to(DEVICE)
        out.append(torch.zeros(5, 16, device=DEVICE))
        kernel.add_hashed(gradient[:, order], order, 3, hash_keys(SEED), 0.5, out[-1], True)
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    expected = by_torch(gradient, slice(0, 40), 3, 0.5, 16)
    assert torch.allclose(out[0].cpu().double() / size, expected / size, rtol=1e-5, atol=1e-5)


def test_an_all_zero_prompt_and_an_empty_tile_add_nothing(kernel: ModuleType) -> None:
    gradient, out = tile(3, 4, 5), torch.zeros(3, 16, device=DEVICE)
    gradient[1] = 0
    kernel.add_hashed(gradient, slice(0, 4), 0, hash_keys(SEED), 1.0, out, True)
    assert out.isfinite().all()
    assert out[0].any()
    assert not out[1].any()
    before = out.clone()
    kernel.add_hashed(gradient[:, :0], slice(4, 4), 0, hash_keys(SEED), 1.0, out)
    assert torch.equal(out, before)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cropi.sketches.triton_hash import _hash_kernel as kernel

names = kernel.arg_names
wide = ("offset", "mask_key", "sign_key", "threshold")


def ptx(dtype, fixed):
    pointers = {"gradient": "*" + dtype, "rows": "*i64", "unit": "*fp32",
                "sums": "*i64" if fixed else "*fp32"}
    constants = {"DIM": 8192, "SPARSE": False, "PADDED": 32, "BLOCK_P": 32, "BLOCK_C": 128}
    if not fixed:
        constants["unit"] = None
    signature = {
        n: "constexpr" if n in constants else pointers.get(n, "i64" if n in wide else "i32")
        for n in names
    }
    aligned = [n for n in names if n in pointers or n in ("coordinates", "stride")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


for dtype, fixed in (("fp32", False), ("bf16", False), ("fp32", True)):
    with open(f"{dtype}-{fixed}.ptx", "w") as file:
        file.write(ptx(dtype, fixed))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the PTX of each variant, compiled for Hopper in one other process."""
    folder = tmp_path_factory.mktemp("ptx")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.skipif(VERSION < (3, 4), reason="older compilers of triton are called otherwise")
@pytest.mark.parametrize(
    ("dtype", "fixed", "addition"),
    [("fp32", False, ".add.v4.f32"), ("bf16", False, ".add.v4.f32"), ("fp32", True, ".add.u64")],
)
def test_the_kernel_compiles_for_hopper_without_one(
    compiled: Path, dtype: str, fixed: bool, addition: str
) -> None:
    """What the interpreter does not see; gradients are read and sums added four at a time."""
    ptx = (compiled / f"{dtype}-{fixed}.ptx").read_text()
    adds = [line for line in ptx.splitlines() if re.search(r"(red|atom)\.global", line)]
    assert adds
    assert all(addition in line for line in adds)
    assert "ld.global.v4.b32" in ptx
