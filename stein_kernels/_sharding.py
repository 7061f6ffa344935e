"""The public functions on DTensors (torch.distributed.tensor).

Sets are independent and so are features, given the distances. So what may be sharded are the
batch dimensions, where every rank computes its own sets, and the features (the last dimension),
where the ranks add up one matrix of distances (``_slices``). Particles may not: every pair of them
is needed. Nothing is moved that the caller did not ask to be moved.

Only the documented interface is used, ``from_local``, ``redistribute`` and ``to_local``. Rules by
``experimental.register_sharding`` would not do: where the features are fewer than the ranks no rule
applies to them any more, and torch then gathers the particles without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from stein_kernels import _backends, _slices

Placements = tuple[Placement, ...]
# The arguments that are tensors, positional ones first, and how many dimensions they have beside
# those of the batch; a direction has the features of the particles, the other results have none.
_TENSORS = {
    "svgd_direction": {"x": 2, "grad": 2, "weights": 1, "query": 2, "bandwidth": 0},
    "rbf_gram": {"x": 2, "y": 2, "bandwidth": 0},
    "median_bandwidth": {"x": 2},
    "stein_divergence": {"x": 2, "grad": 2, "weights": 1, "query": 2, "bandwidth": 0},
    "kernel_stein_discrepancy": {"x": 2, "score": 2, "weights": 1, "bandwidth": 0},
}


def run(function: Callable[..., Tensor], arguments: tuple[Any, ...], options: Any) -> DTensor:
    """Call a public function of which an argument is a DTensor."""
    op = function.__name__
    tensors = _TENSORS[op]
    with _backends.use_backend("auto"):  # on shapes alone: checks all, and says what comes out
        shapes = {name: _shape_of(value) for name, value in options.items()}
        outcome = function(*map(_shape_of, arguments), **shapes)  # as given: so is the signature
    options = {**dict(zip(tensors, arguments, strict=False)), **options}
    layout = Layout.of(op, options["x"])
    local = {
        name: layout.local(op, name, value, tensors[name]) if isinstance(value, Tensor) else value
        for name, value in options.items()
    }
    if any(layout.features):
        result = getattr(_slices, op)(layout, options["x"].shape[-1], **local)
    else:
        result = function(**local)
    return layout.whole(result, outcome, sliced=op == "svgd_direction")


def _shape_of(value: Any) -> Any:
    """A tensor without values on no device."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


class Layout(NamedTuple):
    """Over each dimension of the mesh: what of the particles is sharded."""

    mesh: DeviceMesh
    dims: int  # of x
    shape: torch.Size  # of x
    batch: tuple[int | None, ...]  # the batch dimension, if any
    features: tuple[bool, ...]

    @classmethod
    def of(cls, op: str, x: Any) -> Layout:
        if not isinstance(x, DTensor):
            raise TypeError(f"{op}: an argument is a DTensor, so x must be one, got a plain tensor")
        sharded = [p.dim if type(p) is Shard else None for p in x.placements]
        last = x.dim() - 1
        for placement, dim in zip(x.placements, sharded, strict=True):
            if dim == last - 1 or (dim is None and not placement.is_replicate()):
                raise ValueError(
                    f"{op}: x of shape {tuple(x.shape)} may be sharded along its features, "
                    f"Shard({last}), or along batch dimensions, and be Replicate() otherwise, got "
                    f"{x.placements}; every particle needs all others. Move it by "
                    "x.redistribute(placements=...)"
                )
        batch = tuple(dim if dim != last else None for dim in sharded)
        return cls(x.device_mesh, x.dim(), x.shape, batch, tuple(dim == last for dim in sharded))

    def local(self, op: str, name: str, value: Tensor, kept: int) -> Tensor:
        """This rank's part of an argument, which has to lie as the particles do.

        An argument that serves every rank's sets is the same on all; its gradient is summed.
        """
        if not isinstance(value, DTensor) or value.device_mesh != self.mesh:
            raise TypeError(
                f"{op}: {name} must be a DTensor on the mesh of x, got "
                f"{'another mesh' if isinstance(value, DTensor) else 'a plain tensor'}; "
                "distribute_tensor(value, x.device_mesh, placements) makes one"
            )
        expected = self._placements(value.shape, kept)
        if value.placements != expected:
            raise ValueError(
                f"{op}: {name} must be placed as x is, {expected}, got {value.placements}; "
                f"move it by {name}.redistribute(placements=...)"
            )
        partial = [
            Partial() if dim is not None and placement.is_replicate() else placement
            for dim, placement in zip(self.batch, expected, strict=True)
        ]
        return _Local.apply(value, partial)  # type: ignore[return-value]

    def whole(self, local: Tensor, outcome: Tensor, sliced: bool) -> DTensor:
        """The DTensor of a result's parts; ``outcome`` has the shape of the whole."""
        last = outcome.dim() - 1
        placements = [
            Shard(dim)
            if dim is not None
            else Shard(last)
            if sliced and of_features
            else Replicate()
            for dim, of_features in zip(self.batch, self.features, strict=True)
        ]
        sizes = {}
        if outcome.dim():  # a part of uneven shards does not tell the whole's
            sizes = {"shape": outcome.shape, "stride": outcome.contiguous().stride()}
        return DTensor.from_local(
            local.contiguous(), self.mesh, placements, run_check=False, **sizes
        )

    def sum(self, partial: Tensor) -> Tensor:
        """Over the ranks that hold slices of the same sets; the gradient is every partial's own."""
        return self._from(partial, Partial()).redistribute(placements=self._all_same()).to_local()

    def spread(self, value: Tensor) -> Tensor:
        """A value that those ranks have in common; its gradient is the sum of theirs."""
        if not value.requires_grad:
            return value
        grads = [Partial() if f else Replicate() for f in self.features]
        same = self._from(value, Replicate()).redistribute(placements=self._all_same())
        return same.to_local(grad_placements=grads)

    def _placements(self, shape: torch.Size, kept: int) -> Placements:
        """Where an argument lies, ``kept`` dimensions beside those of the batch."""
        missing = self.dims - 2 - (len(shape) - kept)  # leading dimensions that it broadcasts over
        placements: list[Placement] = []
        for dim, of_features in zip(self.batch, self.features, strict=True):
            if dim is not None and dim >= missing and shape[dim - missing] == self.shape[dim]:
                placements.append(Shard(dim - missing))
            else:
                placements.append(
                    Shard(len(shape) - 1) if of_features and kept == 2 else Replicate()
                )
        return tuple(placements)

    def _from(self, local: Tensor, of_features: Placement) -> DTensor:
        """Over the batch's dimensions of the mesh nothing is summed, so what is said of them is
        no matter."""
        placements = [of_features if f else Replicate() for f in self.features]
        return DTensor.from_local(local, self.mesh, placements, run_check=False)

    def _all_same(self) -> list[Placement]:
        return [Replicate()] * self.mesh.ndim


class _Local(torch.autograd.Function):
    """A DTensor's local part. The gradient of the part comes as ``placements`` say, and goes to
    where the DTensor lies, in its shape and strides.

    ``DTensor.to_local`` would do, but torch 2.11 forgets the strides of uneven shards: it gathers
    their gradients.
    """

    @staticmethod
    def forward(ctx: Any, value: DTensor, placements: list[Placement]) -> Tensor:
        ctx.lies = value.device_mesh, value.placements, value.shape, value.stride()
        ctx.gradient = placements
        return value.to_local().detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        mesh, placements, shape, stride = ctx.lies
        sizes = {"shape": shape, "stride": stride} if shape else {}
        whole = DTensor.from_local(gradient, mesh, ctx.gradient, run_check=False, **sizes)
        return whole.redistribute(placements=placements), None
