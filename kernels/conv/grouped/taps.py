"""The reduction over window taps that forward and dgrad share.

    acc[m, n] += sum_{i, j, k} x[pixel (h0[m] + i*DH, w0[m] + j*DW), k] * w[n, i, j, k]

over the channels k and n of one bundle of groups: a tap's weights are a tile with the groups'
blocks on its diagonal and zeros beside them.  These make NaN of what is not finite in x, in every
group of the bundle: a program whose sums are not finite takes them anew, each group by itself.  It
then computes in every step where its tiles lie: kept in registers, that would cost all programs.
"""

import triton
import triton.language as tl

MOST_TAPS = 32  # one bit each


@triton.jit
def bundle_channels(
    group, GROUPS: tl.constexpr, BUNDLE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The channels, CHANNELS a group, of BUNDLE groups from `group` on, and which there are."""
    channel = tl.arange(0, BLOCK)
    if GROUPS % BUNDLE == 0:
        inside = channel < BUNDLE * CHANNELS
    else:
        inside = channel < tl.minimum(GROUPS - group, BUNDLE) * CHANNELS
    return channel, inside


@triton.jit
def accumulate_taps(
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr, h0, w0, row_inside, channel_inside, H, W, x_h, x_w,  # x_ptr [BLOCK_M, BLOCK_K]
    w_ptr, w_inside, w_h, w_w,  # w_ptr [BLOCK_K, BLOCK_N]
    TAPS_H, TAPS_W, DH, DW,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x_ptr and w_ptr: where tap (0, 0) lies; x_h, x_w, w_h and w_w: elements from tap to tap."""
    columns = tl.zeros_like(w0)
    for j in range(TAPS_W):
        w = w0 + j * DW
        columns |= ((w >= 0) & (w < W)).to(tl.int32) << j
    bits = tl.zeros_like(columns)
    for i in range(TAPS_H):
        h = h0 + i * DH
        bits |= tl.where(row_inside & (h >= 0) & (h < H), columns, 0) << (i * TAPS_W)
    # as wide as x_tile, so that its mask needs no exchange between threads in the loop
    bits = tl.where(channel_inside[None, :], bits[:, None], 0)

    trips = TAPS_H * TAPS_W
    j, x_off, w_off = 0, x_h * 0, w_h * 0  # zeros of the index type
    for tap in tl.range(0, trips, num_stages=STAGES):
        x_tile = tl.load(x_ptr + x_off, mask=((bits >> tap) & 1) != 0, other=0.0)
        w_tile = tl.load(w_ptr + w_off, mask=w_inside, other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)

        row_done = j == TAPS_W - 1
        x_off += tl.where(row_done, x_h - (TAPS_W - 1) * x_w, x_w)
        w_off += tl.where(row_done, w_h - (TAPS_W - 1) * w_w, w_w)
        j = tl.where(row_done, 0, j + 1)
    return acc


@triton.jit
def spoiled(acc):
    """Whether anything in acc is not finite; one instruction an element: others make NaN."""
    return tl.sum(acc * 0.0) != 0.0


@triton.jit
def program_anew(step):
    """The program's number, of which the compiler does not know that it is the same every step."""
    return tl.minimum(tl.program_id(0), tl.num_programs(0) + step)


@triton.jit
def tile_of(CHANNELS: tl.constexpr):
    """Indices that hold one group's channels; 16 at least, for a matrix instruction."""
    return tl.arange(0, 16 if CHANNELS <= 16 else 32)


@triton.jit
def add_tap(
    acc, x_ptr, row_inside, w_ptr, column_inside, w_k,  # x_ptr [BLOCK_M], w_ptr [BLOCK_N]
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc, and one tap of one group's CHANNELS, of which w's lie w_k apart."""
    k = tile_of(CHANNELS)
    x_inside = row_inside[:, None] & (k < CHANNELS)[None, :]
    w_inside = (k < CHANNELS)[:, None] & column_inside[None, :]
    x_tile = tl.load(x_ptr[:, None] + k[None, :], mask=x_inside, other=0.0)
    w_tile = tl.load(w_ptr[None, :] + (k * w_k)[:, None], mask=w_inside, other=0.0)
    return tl.dot(x_tile, w_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
