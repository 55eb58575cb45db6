"""Fourier transform and windows."""

import math

import torch
from torch import Tensor

from onnxdecomp.tune.elements import torch_dtype
from onnxdecomp.tune.registry import Node, operator

_AXIS_INPUT_OPSET = 20

_WINDOWS = {"HannWindow": (0.5, 0.5, 0.0), "HammingWindow": (25 / 46, 21 / 46, 0.0),
            "BlackmanWindow": (0.42, 0.5, 0.08)}  # fmt: skip
"""Coefficients of 1, of minus the cosine, and of the cosine of twice the angle."""


@operator(*_WINDOWS)
def window(node: Node, size: Tensor) -> Tensor:
    """Return a window of cosines."""
    count = int(size.item())
    period = count if node.get("periodic", 1) else count - 1
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / period
    a, b, c = _WINDOWS[node.op_type]
    dtype = torch_dtype(node.get("output_datatype", 1))
    return (a - b * torch.cos(angle) + c * torch.cos(2 * angle)).to(dtype)


@operator("DFT")
def dft(node: Node, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """Return the discrete Fourier transform along an axis; the last one holds real and imaginary parts."""
    along = (
        node.get("axis", 1) if node.opset < _AXIS_INPUT_OPSET else -2 if axis is None else int(axis.item())
    )
    count = None if length is None else int(length.item())
    inverse, one_sided = bool(node.get("inverse", 0)), bool(node.get("onesided", 0))
    along = along % x.ndim
    if inverse and one_sided:
        return torch.fft.irfft(torch.view_as_complex(x.contiguous()), count, along).unsqueeze(-1)
    z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if one_sided:
        z = z if not z.is_complex() else z.real
        return torch.view_as_real(torch.fft.rfft(z, count, along))
    transform = torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(transform(z, count, along))
