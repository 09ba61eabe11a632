"""Nearest-neighbour upsampling and the convolution behind it as one transposed convolution.

Of the nine products that a 3 x 3 kernel makes over a picture of doubled pixels, several meet the same pixel: with
their weights added up beforehand four are left, and the doubled picture need not be made. The sums are taken in another
order, so that results differ by rounding alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


def doubles(layer: Upsample2D) -> bool:
    """Whether a layer is nearest-neighbour doubling with a 3 x 3 convolution of padding 1 and nothing else."""
    conv = getattr(layer, "conv", None)
    return (
        type(conv) is nn.Conv2d
        and bool(layer.use_conv and layer.interpolate and not layer.use_conv_transpose)
        and layer.norm is None
        and (conv.kernel_size, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and (conv.padding, conv.padding_mode, conv.groups) == ((1, 1), "zeros", 1)
    )


def doubling_weight(weight: Tensor) -> Tensor:
    """The kernel [C_in, C_out, 4, 4] of the transposed convolution (stride 2, padding 1) that doubles and convolves.

    weight [C_out, C_in, 3, 3], of the convolution over the doubled picture; the same dtype is returned. A transposed
    convolution spreads each pixel by its kernel, which is the 3 x 3 kernel, turned about, spread over a pixel's 2 x 2.
    """
    outputs, inputs = weight.shape[:2]
    spread = weight.new_ones(1, 1, 2, 2)
    kernels = F.conv2d(weight.flip(2, 3).reshape(-1, 1, 3, 3), spread, padding=1)
    return kernels.reshape(outputs, inputs, 4, 4).transpose(0, 1).contiguous()
