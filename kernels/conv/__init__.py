"""The kernels behind conv2d: what each computes, and which family of kernels serves it.

forward   y  = conv(x, w) + bias                [N, H, W, C] -> [N, OH, OW, CO]
dgrad     dx = sum over taps of dy, w           the transposed convolution, too
wgrad     dw = sum over pixels of dy, x         split reduction, added in fixed order
dbias     db = sum over pixels of dy            split reduction, added in fixed order
problem   one of them, with its shapes, as the families read it
dispatch  the family that serves a problem      from those in the folders beside this file
epilogue  what forward and dgrad do with their sums before they store them

boxes     stride 1, on sm_90: shifted boxes by the tensor memory accelerator (tma)
gemm      1x1 and stride 1, on sm_90: matrix products by the same
general   any problem: implicit GEMM over gathered pixels
depthwise one channel a group: strips of rows in registers, no matrix unit
"""
