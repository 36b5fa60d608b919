"""The kernels behind batch_norm and what is fused with it: what each computes, and its private ops.

stats      mean and variance of each channel, of blocks and of the whole
normalise  y = act(normalised x + residual)             [N, H, W, C]
backward   its two sums over pixels, then its dx        [N, H, W, C]
"""
