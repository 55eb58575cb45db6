"""Products of matrices: Gemm, MatMul, Einsum, Det."""

import torch
from torch import Tensor

from onnxdecomp.tune.registry import Node, operator


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Return ``alpha A B + beta C`` with A and B transposed where asked."""
    if node.get("transA", 0):
        a = a.T
    if node.get("transB", 0):
        b = b.T
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is None:
        y = a @ b
        return y if alpha == 1 else alpha * y
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@operator("MatMul")
def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, stacked along the leading axes."""
    return a @ b


@operator("Einsum")
def einsum(node: Node, *inputs: Tensor) -> Tensor:
    """Sum products of the inputs over the indices that the equation names."""
    return torch.einsum(node.require("equation").replace(" ", ""), *inputs)


@operator("Det")
def det(node: Node, x: Tensor) -> Tensor:
    """Return determinants of the matrices in the last two axes."""
    return torch.linalg.det(x)
