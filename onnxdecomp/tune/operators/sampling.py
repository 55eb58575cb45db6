"""Sampling at places that a tensor names: GridSample, AffineGrid."""

from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """Sample an image or a volume at the places of a grid."""
    mode = node.get("mode", "linear")
    mode = _MODES.get(mode, mode)
    if mode == "bicubic" and x.ndim != 4:
        raise node.unsupported("samples a volume by cubic interpolation")
    edges = node.get("padding_mode", "zeros")
    return functional.grid_sample(x, grid, mode, edges, bool(node.get("align_corners", 0)))


@operator("AffineGrid")
def affine_grid(node: Node, theta: Tensor, size: Tensor) -> Tensor:
    """Return the grid of places that an affine map sends an image or a volume to."""
    return functional.affine_grid(theta, size.tolist(), bool(node.get("align_corners", 0)))
