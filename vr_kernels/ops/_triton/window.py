"""Which window, heads and feature rows a program works on, and where they stand in memory.

A (windows, heads, width) tensor comes as ``arguments.Rows``, a feature level as ``arguments.Level``. Offsets are
64-bit: 70,000 windows of the papers' width pass 2**31 elements.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def locate_heads(HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_H: tl.constexpr):
    """This program's window, kv head, heads, which heads exist. A window's tiles are neighbours: they share rows."""
    GROUP: tl.constexpr = HEADS // KV_HEADS  # heads that share a kv head
    TILES: tl.constexpr = (GROUP + BLOCK_H - 1) // BLOCK_H
    i_program = tl.program_id(0).to(tl.int64)
    i_window = i_program // (KV_HEADS * TILES)
    i_kv = i_program // TILES % KV_HEADS
    i_member = i_program % TILES * BLOCK_H + tl.arange(0, BLOCK_H)  # (BLOCK_H,)
    return i_window, i_kv, i_kv * GROUP + i_member, i_member < GROUP


@triton.jit
def locate_slots(
    p_index,
    i_window,
    first_window,
    n_h,
    n_w,
    row_count,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Each slot's feature row as a number and as (image, y, x), and which slots are present, (BLOCK_K,) each.

    The indexed form has image = row. A number that is no row is an absent slot, and is never read.
    """
    i_slot = tl.arange(0, BLOCK_K).to(tl.int64)
    return locate_rows(p_index, i_window, i_slot, i_slot < SLOTS, first_window, n_h, n_w, row_count, SLOTS, S_H, S_W)


@triton.jit
def locate_rows(
    p_index,
    i_window,
    i_slot,
    m_slot,
    first_window,
    n_h,
    n_w,
    row_count,
    SLOTS: tl.constexpr,
    S_H: tl.constexpr,
    S_W: tl.constexpr,
):
    """The same for any pairs of a window and a slot: one of the two is a vector, and the results are as long."""
    if p_index is not None:
        i_row = tl.load(p_index + i_window * SLOTS + i_slot, mask=m_slot, other=-1).to(tl.int64)
        m_slot = m_slot & (i_row >= 0) & (i_row < row_count)
        i_zero = tl.zeros_like(i_row)
        place = (i_row, i_zero, i_zero)
    else:
        i_place = first_window + i_window
        i_image = i_place // n_w // n_h + tl.zeros_like(i_window + i_slot)
        i_y = i_place // n_w % n_h * S_H + i_slot // S_W
        i_x = i_place % n_w * S_W + i_slot % S_W
        i_row = (i_image * n_h * S_H + i_y) * n_w * S_W + i_x
        place = (i_image, i_y, i_x)
    return i_row, place, m_slot


@triton.jit
def level_offsets(levels, place, i_kv):
    """Where each slot's row starts in each level, a tuple of (BLOCK_K,)."""
    o_levels = ()
    for i in tl.static_range(len(levels)):
        o_levels += (level_offset(levels[i], place, i_kv),)
    return o_levels


@triton.jit
def level_offset(level, place, i_kv):
    return place[0] * level.image + place[1] * level.row + place[2] * level.column + i_kv * level.head


@triton.jit
def row_pointers(rows, i_window, i_head, i_column):
    """Addresses (BLOCK_H, columns) in a (windows, heads, width) tensor."""
    return rows.pointer + i_window * rows.window + (i_head * rows.head)[:, None] + i_column[None, :]
