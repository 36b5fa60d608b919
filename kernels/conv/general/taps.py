"""The reduction over window taps and channels that forward and dgrad share.

    acc[m, n] += sum_{i, j, k} x[pixel (h0[m] + i*DH, w0[m] + j*DW), k] * w[n, i, j, k]

x is gathered and counts only inside the image.  Taps and channel blocks form one flat loop with
carried counters: nested loops would drain the pipeline at every tap, and a division in the loop
costs more than the product.  Three forms, by how a tap's validity is known:

    bits   at most 32 taps: one bit a tap in each row, set before the loop
    range  more taps: compared with the image's bounds in the loop
    flat   few channels: taps and channels as one index, so that a step spans several taps
"""

import triton
import triton.language as tl

MOST_BITS = 32
FEW_CHANNELS = 16


def form(taps: int, channels: int) -> str:
    if channels < FEW_CHANNELS:
        return "flat"
    return "bits" if taps <= MOST_BITS else "range"


@triton.jit
def accumulate_taps(
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr, origin, h0, w0, row_inside, H, W, pixel,  # [BLOCK_M] each; pixel: elements a pixel apart
    w_ptr, column, column_inside, w_h, w_w, w_k,  # [BLOCK_N]; elements apart along i, j and k
    TAPS_H, TAPS_W, K, DH, DW,
    FORM: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """origin and column: where tap (0, 0), channel 0 lies.  TAIL: BLOCK_K does not divide K."""
    offs_k = tl.arange(0, BLOCK_K)
    x_h, x_w = DH * W * pixel, DW * pixel

    if FORM == "flat":
        total = TAPS_H * TAPS_W * K
        trips = tl.cdiv(total, BLOCK_K)
        tl.assume(trips > 0)
        for trip in tl.range(0, trips, num_stages=STAGES):
            index = trip * BLOCK_K + offs_k
            tap, k = index // K, index % K
            i, j = tap // TAPS_W, tap % TAPS_W
            h, w = h0[:, None] + (i * DH)[None, :], w0[:, None] + (j * DW)[None, :]
            inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            inside = inside & row_inside[:, None] & (index < total)[None, :]
            x_tile = tl.load(
                x_ptr + (origin[:, None] + (i * x_h + j * x_w + k)[None, :]), mask=inside, other=0.0
            )
            w_tile = tl.load(
                w_ptr + (column[None, :] + (i * w_h + j * w_w + k * w_k)[:, None]),
                mask=(index < total)[:, None] & column_inside[None, :],
                other=0.0,
            )
            acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        return acc

    bits = tl.zeros_like(h0).to(tl.int32)
    if FORM == "bits":
        for i in range(TAPS_H):
            for j in range(TAPS_W):
                h, w = h0 + i * DH, w0 + j * DW
                inside = row_inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                bits |= inside.to(tl.int32) << (i * TAPS_W + j)

    x_tile_ptr = x_ptr + (origin[:, None] + offs_k[None, :])
    w_tile_ptr = w_ptr + (column[None, :] + (offs_k * w_k)[:, None])
    blocks = tl.cdiv(K, BLOCK_K)
    trips = TAPS_H * TAPS_W * blocks
    tl.assume(trips > 0)
    block, tap, i, j = 0, 0, 0, 0
    x_off, w_off = x_h * 0, w_h * 0  # zeros of the index type
    for _ in tl.range(0, trips, num_stages=STAGES):
        if FORM == "bits":
            inside = ((bits >> tap) & 1) != 0
        else:
            h, w = h0 + i * DH, w0 + j * DW
            inside = row_inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        x_mask, w_mask = inside[:, None], column_inside[None, :]
        if TAIL:
            left = offs_k < K - block * BLOCK_K
            x_mask, w_mask = x_mask & left[None, :], w_mask & left[:, None]
        x_tile = tl.load(x_tile_ptr + x_off, mask=x_mask, other=0.0)
        w_tile = tl.load(w_tile_ptr + w_off, mask=w_mask, other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)

        block += 1
        tap_done = block == blocks
        row_done = tap_done & (j == TAPS_W - 1)
        x_off += BLOCK_K + tl.where(tap_done, x_w - blocks * BLOCK_K, 0)
        x_off += tl.where(row_done, x_h - TAPS_W * x_w, 0)
        w_off += BLOCK_K * w_k + tl.where(tap_done, w_w - blocks * BLOCK_K * w_k, 0)
        w_off += tl.where(row_done, w_h - TAPS_W * w_w, 0)
        block = tl.where(tap_done, 0, block)
        tap += tap_done.to(tl.int32)
        i += row_done.to(tl.int32)
        j = tl.where(row_done, 0, j + tap_done.to(tl.int32))
    return acc
