"""Nine networks written small: what is special about each is there, widths and depths are not."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = (2, 3, 32, 32)
TOKENS = (2, 7)
N_TOKENS = 23
N_CLASSES = 5


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU
) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs, 3, act=None)
        )
        self.short = conv_norm(inputs, outputs, 1, stride, act=None) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1), Residual(8, 12, 2), Head(12)
    )


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, gate: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.gate, self.inner = gate, inner

    def forward(self, x: Tensor) -> Tensor:
        scale = self.up(self.inner(self.down(x.mean((2, 3), keepdim=True))))
        return x * self.gate(scale)


class Inverted(nn.Module):
    def __init__(self, width: int, outputs: int, stride: int, act: type, squeeze: nn.Module) -> None:
        super().__init__()
        inner = 2 * width
        self.body = nn.Sequential(
            conv_norm(width, inner, act=act),
            conv_norm(inner, inner, 5, stride, inner, act=act),
            squeeze,
            conv_norm(inner, outputs, act=None),
        )
        self.keeps = stride == 1 and width == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.keeps else self.body(x)


def mobilenet_v3() -> nn.Module:
    squeeze = partial(SqueezeExcite, gate=nn.Hardsigmoid(), inner=nn.ReLU())
    return nn.Sequential(
        conv_norm(3, 8, 3, 2, act=nn.Hardswish),
        Inverted(8, 8, 1, nn.ReLU, squeeze(16)),
        Inverted(8, 12, 2, nn.Hardswish, squeeze(16)),
        Head(12),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(N_CLASSES, N_CLASSES),
    )


def efficientnet() -> nn.Module:
    squeeze = partial(SqueezeExcite, gate=nn.Sigmoid(), inner=nn.SiLU())
    return nn.Sequential(
        conv_norm(3, 8, 3, 2, act=nn.SiLU),
        Inverted(8, 8, 1, nn.SiLU, squeeze(16)),
        Inverted(8, 12, 2, nn.SiLU, squeeze(16)),
        Head(12),
    )


class Shuffle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            conv_norm(half, half), conv_norm(half, half, 3, groups=half, act=None), conv_norm(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        y = torch.cat([kept, self.body(changed)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), Shuffle(8), Shuffle(8), Head(8))


class Block(nn.Module):
    """A transformer block, written out so that every exporter sees the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Block(16, 2), Block(16, 2), nn.LayerNorm(16))
        self.classes = nn.Linear(16, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.classes(self.blocks(x)[:, 0])


class WindowBlock(Block):
    """Attention within windows of 4x4 that are shifted, with a bias for relative places."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__(width, heads)
        self.shift = shift
        self.table = nn.Parameter(torch.randn(49, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None, :]) + 3
        self.register_buffer("places", relative[0] * 7 + relative[1])

    def forward(self, x: Tensor) -> Tensor:  # (n, h, w, width)
        n, h, w, c = x.shape
        y = self.norms[0](x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        bias = self.table[self.places.view(-1)].view(16, 16, -1).permute(2, 0, 1).unsqueeze(0)
        y = self.attend(y, bias)
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norms[1](x))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.first = nn.Sequential(WindowBlock(8, 2, 0), WindowBlock(8, 2, 2))
        self.norm, self.merge = nn.LayerNorm(32), nn.Linear(32, 12, bias=False)
        self.second = WindowBlock(12, 2, 2)
        self.classes = nn.Linear(12, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.patches(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.classes(self.second(self.merge(self.norm(x))).mean((1, 2)))


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))) * self.scale
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ConvNextBlock(8), nn.Conv2d(8, 12, 2, 2), ConvNextBlock(12), Head(12)
    )


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(N_TOKENS, 16), nn.Embedding(12, 16)
        self.norm = nn.LayerNorm(16)
        self.blocks = nn.ModuleList([Block(16, 2), Block(16, 2)])
        self.classes = nn.Linear(16, N_CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for block in self.blocks:
            x = block.norms[0](x + block.attend(x, bias))
            x = block.norms[1](x + block.mlp(x))
        return self.classes(torch.tanh(x[:, 0]))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_norm(3, 8, 3), conv_norm(8, 12, 3), conv_norm(12, 16, 3)])
        self.up = nn.ConvTranspose2d(16, 12, 2, 2)
        self.merge = nn.ModuleList([conv_norm(24, 8, 3), conv_norm(16, 8, 3)])
        self.classes = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](functional.max_pool2d(first, 2))
        third = self.down[2](functional.avg_pool2d(second, 2))
        y = self.merge[0](torch.cat([self.up(third), second], 1))
        y = functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.classes(self.merge[1](torch.cat([y, first], 1)))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": resnet, "MobileNetV3": mobilenet_v3, "EfficientNet": efficientnet,
    "ShuffleNetV2": shufflenet_v2, "ViT": ViT, "Swin": Swin, "ConvNeXt": convnext, "BERT": Bert,
    "U-Net": UNet,
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network in inference mode, filled with numbers that are the same everywhere, and an input."""
    rng = np.random.default_rng(0)
    module = ARCHITECTURES[name]().eval()
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if key.endswith("running_var"):
            values = rng.uniform(0.5, 2, tensor.shape)
        elif tensor.ndim < 2:
            values = rng.uniform(0.2, 1.2, tensor.shape) - 0.5 * key.endswith(("bias", "mean"))
        else:
            values = rng.uniform(-1, 1, tensor.shape) * (3 / tensor[0].numel()) ** 0.5
        tensor.copy_(torch.from_numpy(values))
    if name == "BERT":
        mask = torch.ones(TOKENS, dtype=torch.int64)
        mask[0, 4:] = 0
        return module, (torch.from_numpy(rng.integers(N_TOKENS, size=TOKENS)), mask)
    return module, (torch.from_numpy(rng.normal(size=IMAGE).astype(np.float32)),)
