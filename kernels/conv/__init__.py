"""The kernel families behind conv2d: what each computes, its device kernels and its private ops.

taps      the loop over window taps and channels that forward and dgrad share
forward   y  = conv(x, w) + bias                [N, H, W, C] -> [N, OH, OW, CO]
dgrad     dx = sum over taps of dy, w           one residue class of the stride a program
wgrad     dw = sum over pixels of dy, x         split reduction, added in fixed order
dbias     db = sum over pixels of dy            split reduction, added in fixed order
epilogue  what forward and dgrad do with their sums before they store them
tiles     which block sizes serve a problem
"""
