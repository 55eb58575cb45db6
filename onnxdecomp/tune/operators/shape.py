"""Shapes: what asks for them, changes them, cuts and joins tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.elements import torch_dtype
from onnxdecomp.tune.registry import Node, operator


@operator("Constant")
def constant(node: Node) -> Tensor:
    """Return the tensor or the numbers that the node holds."""
    if "value" in node.attributes:
        return node.attributes["value"]
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32),
                        ("value_int", torch.int64), ("value_ints", torch.int64)):  # fmt: skip
        if name in node.attributes:
            return torch.tensor(node.attributes[name], dtype=dtype)
    if "sparse_value" in node.attributes:
        return node.attributes["sparse_value"]
    raise node.unsupported("holds text")


@operator("ConstantOfShape")
def constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    """Return a tensor of one number everywhere."""
    value = node.get("value")
    if value is None:
        return torch.zeros(shape.tolist())
    return value.reshape(-1)[0].expand(shape.tolist()).contiguous()


@operator("Shape")
def shape_of(node: Node, x: Tensor) -> Tensor:
    """Return the shape, or a part of it."""
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64)


@operator("Size")
def size(node: Node, x: Tensor) -> Tensor:
    """Return the number of elements."""
    return torch.tensor(x.numel())


@operator("Reshape")
def reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """Give the elements another shape; -1 is what is left, 0 copies an axis unless allowzero is set."""
    wanted = shape.tolist()
    if not node.get("allowzero", 0):
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    if -1 in wanted and x.numel() == 0:
        known = math.prod(n for n in wanted if n != -1)
        wanted = [(0 if known else 1) if n == -1 else n for n in wanted]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """Make a matrix of the axes before and from one on."""
    axis = node.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """Put the axes in another order, by default the reverse."""
    return x.permute(node.get("perm") or tuple(reversed(range(x.ndim))))


@operator("Squeeze")
def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Take axes of length one out."""
    given = node.ints("axes", axes)
    return x.squeeze() if given is None else x.squeeze(given)


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Put axes of length one in; they are counted in the result."""
    given = node.ints("axes", axes) or ()
    rank = x.ndim + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *inputs: Tensor) -> Tensor:
    """Join tensors along an axis."""
    return torch.cat(inputs, node.require("axis"))


@operator("Split")
def split(node: Node, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis into given lengths, or into equal ones of which the last may be shorter."""
    axis, given = node.get("axis", 0), node.ints("split", lengths)
    if given is None:
        parts = node.get("num_outputs", node.n_outputs)
        each = -(-x.shape[axis] // parts)
        given = (*(each,) * (parts - 1), x.shape[axis] - each * (parts - 1))
    return tuple(x.split(given, axis))


@operator("Slice")
def slice_(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cut a box out, in steps that may go backwards."""
    first, last = node.ints("starts", starts) or (), node.ints("ends", ends) or ()
    along = node.ints("axes", axes) or range(len(first))
    by = steps.tolist() if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        places = range(x.shape[axis])[start:end:step]
        if step > 0:
            stop = places[-1] + 1 if places else places.start
            x = x[(slice(None),) * (axis % x.ndim) + (slice(places.start, stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@operator("Expand")
def expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """Repeat axes of length one up to a shape, both ways."""
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


@operator("Tile")
def tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat the tensor along each axis."""
    return x.repeat(repeats.tolist())


@operator("Range")
def range_(node: Node, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """Return numbers from a start in steps up to a limit, which is left out."""
    first, last, by = start.item(), limit.item(), step.item()
    count = max(0, math.ceil((last - first) / by))
    return first + by * torch.arange(count, dtype=start.dtype)


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    """Return ones on a diagonal of a matrix."""
    dtype = torch_dtype(node.get("dtype")) if node.get("dtype") else x.dtype
    rows, columns = (torch.arange(n) for n in x.shape)
    return (columns[None, :] - rows[:, None] == node.get("k", 0)).to(dtype)


@operator("Trilu")
def trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Keep one triangle of the matrices in the last two axes."""
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Spread channels over blocks of pixels."""
    n, c, h, w = x.shape
    b = node.require("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, b)
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Gather blocks of pixels into channels."""
    n, c, h, w = x.shape
    b = node.require("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return functional.pixel_unshuffle(x, b)
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@operator("Pad")
def pad(
    node: Node,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Add elements before and after axes, or crop where the number is negative."""
    given = node.ints("pads", pads) or ()
    along = [axis % x.ndim for axis in axes.tolist()] if axes is not None else list(range(x.ndim))
    begin, end = given[: len(along)], given[len(along) :]
    mode = node.get("mode", "constant")
    if mode == "constant":
        both = dict(zip(along, zip(begin, end, strict=True), strict=True))
        flat = [n for axis in reversed(range(x.ndim)) for n in both.get(axis, (0, 0))]
        number = value.item() if value is not None else node.get("value", 0.0)
        return _constant_pad(x, flat, number)
    for axis, before, after in zip(along, begin, end, strict=True):
        if before or after:
            x = x.index_select(axis, _outside(mode, x.shape[axis], before, after))
    return x


def _constant_pad(x: Tensor, flat: Sequence[int], number: float) -> Tensor:
    if x.dtype == torch.bool:
        return functional.pad(x.to(torch.uint8), flat, value=int(number)).bool()
    return functional.pad(x, flat, value=number)


def _outside(mode: str, size: int, before: int, after: int) -> Tensor:
    """Return which element stands at each place of a padded axis."""
    places = torch.arange(-before, size + after)
    if mode == "wrap":
        return places % size
    if mode == "edge":
        return places.clamp(0, size - 1)
    period = max(1, 2 * (size - 1))
    places = places % period
    return torch.where(places < size, places, period - places)


@operator("CenterCropPad")
def center_crop_pad(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """Crop or pad with zeros to a shape, the middle staying in the middle."""
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    flat = [0] * (2 * x.ndim)
    for axis, wanted in zip(axes, shape.tolist(), strict=True):
        more = wanted - x.shape[axis]
        before = more // 2 if more >= 0 else -(-more // 2)
        flat[2 * (x.ndim - 1 - axis)], flat[2 * (x.ndim - 1 - axis) + 1] = before, more - before
    return _constant_pad(x, flat, 0)
