"""The kernels behind conv2d: what each computes, and which family of kernels serves it.

forward   y  = conv(x, w) + bias                [N, H, W, C] -> [N, OH, OW, CO]
dgrad     dx = sum over taps of dy, w           the transposed convolution, too
wgrad     dw = sum over pixels of dy, x         split reduction, added in fixed order
dbias     db = sum over pixels of dy            split reduction, added in fixed order
problem   one of them, with its shapes, as the families read it
dispatch  the family that serves a problem      from those in the folders beside this file
epilogue  what forward and dgrad do with their sums before they store them

depthwise one channel a group: strips of rows in registers, no matrix unit
grouped   few channels a group: several groups a program, as blocks of one product
stem      few input channels: a row of taps as one run of memory
stream    1x1 and stride 1, few channels to sum over, on sm_90: weights stay, pixels stream by (tma)
gemm      1x1 and stride 1, on sm_90: matrix products by the tensor memory accelerator (tma)
boxes     any window, stride and dilation, on sm_90: shifted boxes by the same
general   any problem: implicit GEMM over gathered pixels
"""
