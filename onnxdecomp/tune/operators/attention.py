"""Attention and rotary embeddings as operators of their own (operator set 23 and newer)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator


def _heads(x: Tensor, count: int | None) -> Tensor:
    """Return ``(batch, heads, sequence, size)``, whether the heads stand in an axis of their own or not."""
    if x.ndim == 4 or count is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


@operator("Attention")
def attention(
    node: Node,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``softmax(scale q k^T + bias) v``, keys and values with those of the past, and the scores."""
    flat = q.ndim == 3
    q = _heads(q, node.get("q_num_heads"))
    k, v = (_heads(x, node.get("kv_num_heads")) for x in (k, v))
    n_past = 0 if past_k is None else past_k.shape[2]
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present = k, v
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scale = math.sqrt(node.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = (q * scale) @ (k * scale).mT  # (batch, heads, queries, keys)
    raw = scores
    softcap = node.get("softcap", 0.0)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    capped = scores
    bias = _bias(node, q, k.shape[2], mask, n_past, lengths)
    biased = scores + bias
    nothing = (bias == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(torch.where(nothing, capped, biased), -1).masked_fill(nothing, 0)
    y = weights @ v
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    return y, *present, (raw, capped, biased, weights)[node.get("qk_matmul_output_mode", 0)]


def _bias(
    node: Node, q: Tensor, n_keys: int, mask: Tensor | None, n_past: int, lengths: Tensor | None
) -> Tensor:
    """Return what is added to the scores: the mask, and minus infinity where a query must not look."""
    allowed = torch.ones(1, 1, q.shape[2], n_keys, dtype=torch.bool)
    keys = torch.arange(n_keys)
    offset = torch.full((1, 1, 1, 1), n_past)
    if lengths is not None:
        allowed = allowed & (keys < lengths.reshape(-1, 1, 1, 1))
        if not n_past:
            offset = (lengths - q.shape[2]).reshape(-1, 1, 1, 1)
    ahead = keys - (torch.arange(q.shape[2])[:, None] + offset)  # (batch, 1, queries, keys)
    if node.get("is_causal", 0):
        allowed = allowed & (ahead <= 0)
    left, right = node.get("left_window_size", -1), node.get("right_window_size", -1)
    if left >= 0:
        allowed = allowed & (-ahead <= left)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    bias = torch.zeros(allowed.shape, dtype=q.dtype).masked_fill(~allowed, -math.inf)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
    return bias + functional.pad(mask, (0, n_keys - mask.shape[-1]), value=-math.inf)


@operator("RotaryEmbedding")
def rotary_embedding(
    node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Turn pairs of features by the angle of their position."""
    y = x.transpose(1, 2) if x.ndim == 4 else x.reshape(*x.shape[:2], node.require("num_heads"), -1)
    turned = node.get("rotary_embedding_dim", 0) or y.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)  # (batch, sequence, 1, turned / 2)
    rotating, rest = y[..., :turned], y[..., turned:]
    interleaved = bool(node.get("interleaved", 0))
    first, second = (
        (rotating[..., 0::2], rotating[..., 1::2]) if interleaved else rotating.split(turned // 2, -1)
    )
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        rotating = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        rotating = torch.cat([real, imaginary], -1)
    y = torch.cat([rotating, rest], -1)
    return y.transpose(1, 2) if x.ndim == 4 else y.reshape(x.shape)
