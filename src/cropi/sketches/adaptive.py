"""A sketch that is fitted to the pool: principal directions exactly, the rest hashed.

Per-prompt gradients of one policy fill little of their space. So each is first hashed to many more
buckets (`width`) than the sketch has dimensions, which costs no more than hashing to few; a sample
of the pool's wide sketches, each of unit length, gives the principal directions B (orthonormal
rows); and a wide sketch w is compressed to

    [ B w,  H (w - B^T B w) ]

with H a signed hashing to the remaining dimensions. Inner products are unbiased given B, and only
the part that B misses has an error. Targets are never seen: B is a property of the pool, its hash
is in the identity, and `state_bytes` and `load_state` carry it to another machine. B is rounded to
fp16 when it is fitted, so that the saved and the used basis are equal.

Storing the heaviest coordinates or buckets instead gains a tenth of that (docs/design/sketches.md).

Shape legend: P prompts, N prompts of the sample, W width, M directions, D dimensions.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cropi.errors import InputError
from cropi.gradients.consumers import block_dots
from cropi.gradients.contributions import Contribution
from cropi.plugins import plugin
from cropi.settings import Count, Section
from cropi.sketches.sketch import Shapes, Sketch
from cropi.sketches.sparse import SparseSketch
from cropi.sketches.windowed import WindowedSketch

WIDEST = 1 << 16
"""Buckets to accumulate in, unless `dim` is so large that FACTOR times it are more."""

FACTOR = 4
"""Buckets to accumulate in, as a multiple of `dim`, where that is more."""

NEGLIGIBLE = 1e-6
"""Directions with less than this share of the first one's energy are rounding error."""


def default_width(dim: int) -> int:
    """Buckets to accumulate in for `dim` dimensions."""
    return max(WIDEST, FACTOR * dim)


@dataclass
class AdaptiveSketch:
    """`base` compressed to `dim` dimensions, at most `directions` (and dim / 2) of them fitted.

    `sample` is the number of prompts to fit it on.
    """

    base: Sketch
    dim: int
    seed: int
    directions: int = 256
    sample: int = 512
    _basis_MW: Tensor | None = field(init=False, repr=False, default=None)
    _rest: SparseSketch | None = field(init=False, repr=False, default=None)
    _hashed_basis_MD: Tensor | None = field(init=False, repr=False, default=None)

    @property
    def width(self) -> int:
        """Numbers per prompt while its gradient streams by."""
        return self.base.width

    @property
    def is_fitted(self) -> bool:
        """Whether it has been fitted, and so can compress."""
        return self._basis_MW is not None

    @property
    def identity(self) -> dict[str, str]:
        """The base's identity, the settings, and a hash of the fitted basis."""
        return {**self._settings, "fitted": self._basis_hash}

    def project(
        self, name: str, rows: slice | Tensor, gradient_PRI: Tensor, out_PW: Tensor
    ) -> None:
        """Add the wide sketch of some rows of a parameter to fp32 `out_PW`."""
        self.base.project(name, rows, gradient_PRI, out_PW)

    def takes_factors(self, name: str) -> bool:
        """Whether the base prefers the factors of a parameter."""
        return self.base.takes_factors(name)

    def project_factors(
        self, name: str, contributions: Sequence[Contribution], out_PW: Tensor
    ) -> None:
        """Add the wide sketch of a parameter's factors."""
        self.base.project_factors(name, contributions, out_PW)

    def fit(self, wide_NW: Tensor) -> None:
        """Find the principal directions of fp32 wide sketches [N, W] of pool prompts.

        Zero and infinite ones are left out; raises InputError if none remain. The sample's inner
        products [N, N] are decomposed in float64, so cost and memory depend on the sample alone.
        Rounding differs between thread counts and machines: fit once, and share `state_bytes`.
        """
        lengths_N = torch.linalg.vector_norm(wide_NW, dim=1, dtype=torch.float64)
        usable_N = lengths_N.isfinite() & (lengths_N > 0)
        units = wide_NW[usable_N] / lengths_N[usable_N].float().unsqueeze(1)
        if not len(units):
            raise InputError(
                f"all {len(wide_NW)} sampled gradients are zero or not finite, so the sketch "
                "cannot be fitted; use more prompts, or a sketch that is not fitted (windowed)"
            )
        energies, vectors = torch.linalg.eigh(block_dots(units, units))
        rank = int((energies > NEGLIGIBLE * energies[-1]).sum())
        count = min(self.directions, self.dim // 2, rank)
        mixing_MN = vectors.flip(1)[:, :count].T.float()
        # QR, because rows scaled by small energies would not be orthonormal to the last digits.
        self._set_basis(torch.linalg.qr((mixing_MN @ units).T).Q.T)

    def compress(self, wide_PW: Tensor) -> Tensor:
        """Finished sketches fp32 [P, D]: the fitted directions, then the hashed rest.

        H is linear, so the rest is hashed without being formed: H w - (H B^T) B w.
        """
        assert self._basis_MW is not None, "fit or load_state comes first"
        assert self._rest is not None
        assert self._hashed_basis_MD is not None
        fitted_PM = wide_PW @ self._basis_on(wide_PW.device).T
        rest_PD = wide_PW.new_zeros(len(wide_PW), self._rest.dim)
        self._rest.project("wide", slice(0, 1), wide_PW.unsqueeze(1), rest_PD)
        rest_PD.addmm_(fitted_PM, self._hashed_basis_MD, alpha=-1)
        return torch.cat([fitted_PM, rest_PD], 1)

    def state_bytes(self) -> bytes:
        """The fitted state, as the content of an .npz file; equal state gives equal bytes."""
        assert self._basis_MW is not None, "the sketch is not fitted yet"
        settings = np.array(json.dumps(self._settings, sort_keys=True))
        basis = self._basis_MW.half().cpu().numpy()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name, array in (("settings", settings), ("basis", basis)):
                member = io.BytesIO()
                np.save(member, array)
                # Entries made like this have no date.
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
        return content.getvalue()

    def load_state(self, content: bytes) -> None:
        """Restore a state from `state_bytes`. Raises InputError if it is another sketch's."""
        try:
            with np.load(io.BytesIO(content)) as archive:
                settings, basis = json.loads(str(archive["settings"])), archive["basis"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"the fitted sketch is damaged ({type(error).__name__}: {error}); fit it again"
            ) from error
        if settings != self._settings:
            differences = [
                f"{key} {settings.get(key)!r} instead of {value!r}"
                for key, value in self._settings.items()
                if settings.get(key) != value
            ]
            raise InputError(
                f"the fitted state belongs to another sketch ({', '.join(differences)}); use the "
                "same model, seed and dimensions, or fit it again"
            )
        self._set_basis(torch.from_numpy(basis).float())

    @property
    def _settings(self) -> dict[str, str]:
        base = {f"base_{key}": value for key, value in self.base.identity.items()}
        return {
            "sketch": "adaptive",
            "seed": str(self.seed),
            "dim": str(self.dim),
            "directions": str(self.directions),
            **base,
        }

    @property
    def _basis_hash(self) -> str:
        if self._basis_MW is None:
            return "not yet"
        return hashlib.sha256(self._basis_MW.half().cpu().numpy().tobytes()).hexdigest()[:16]

    def _set_basis(self, basis_MW: Tensor) -> None:
        """Store the basis, and the hashing of what it misses."""
        self._basis_MW = basis_MW.half().float()
        directions, width = basis_MW.shape
        self._rest = SparseSketch({"wide": (width,)}, self.seed, 1.0, self.dim - directions)
        self._hashed_basis_MD = basis_MW.new_zeros(directions, self._rest.dim)
        self._rest.project("wide", slice(0, 1), self._basis_MW.unsqueeze(1), self._hashed_basis_MD)

    def _basis_on(self, device: torch.device) -> Tensor:
        """The basis, moved once to where gradients are."""
        assert self._basis_MW is not None
        assert self._hashed_basis_MD is not None
        if self._basis_MW.device != device:
            self._basis_MW = self._basis_MW.to(device)
            self._hashed_basis_MD = self._hashed_basis_MD.to(device)
        return self._basis_MW


class AdaptiveSettings(Section):
    """Settings of the sketch `adaptive`."""

    dim: Count = Field(8192, description="dimensions of the sketch")


@plugin("sketch", "adaptive", AdaptiveSettings)
def adaptive(settings: AdaptiveSettings, shapes: Shapes, seed: int) -> Sketch:
    """The pool's principal directions exactly, the rest hashed (of a wide `windowed` sketch)."""
    return AdaptiveSketch(
        WindowedSketch(shapes, seed, default_width(settings.dim)), settings.dim, seed
    )
