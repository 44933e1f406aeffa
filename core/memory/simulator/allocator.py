"""PyTorch's caching allocator: which blocks and segments a log of allocations and releases leads to.

Source: c10/cuda/CUDACachingAllocator.cpp (torch 2.13): get_allocation_size, should_split, get_free_block,
try_merge_blocks, try_allocate_expandable_block. Allocations on one stream, never out of memory.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

MIB = 2**20
SMALL_BYTES = 1 * MIB
"""Allocations up to this come from the small pool (kSmallSize)."""
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
"""Segment of the large pool for allocations below LEAST_OWN_SEGMENT_BYTES (kLargeBuffer)."""
LEAST_OWN_SEGMENT_BYTES = 10 * MIB
"""From this on an allocation gets a segment of its own size (kMinLargeAlloc)."""
OWN_SEGMENT_ROUNDING_BYTES = 2 * MIB
LEAST_BLOCK_BYTES = 512


class Block:
    """A range of a segment: allocated, or free."""

    __slots__ = ("address", "is_free", "next", "num_bytes", "pool", "previous")

    def __init__(self, pool: "Pool", address: int, num_bytes: int, previous: "Block | None" = None):
        self.pool = pool
        self.address = address
        self.num_bytes = num_bytes
        self.previous = previous
        self.next: Block | None = None
        self.is_free = False


class Pool:
    """The segments for small or for large allocations."""

    def __init__(self, is_small: bool):
        self.segment_bytes = SMALL_SEGMENT_BYTES if is_small else LARGE_SEGMENT_BYTES
        self.is_small = is_small
        self.free: list[tuple[int, int, Block]] = []
        """Free blocks by size, then address: the order of best fit."""
        self.end: Block | None = None
        """The last block of the last segment."""

    def put(self, block: Block) -> None:
        """Add a free block."""
        block.is_free = True
        insort(self.free, (block.num_bytes, block.address, block))

    def take(self, block: Block) -> Block:
        """Remove a free block."""
        block.is_free = False
        del self.free[bisect_left(self.free, (block.num_bytes, block.address))]
        return block

    def best_fit(self, num_bytes: int) -> Block | None:
        """The smallest free block that is large enough; removed from the pool."""
        index = bisect_left(self.free, (num_bytes,))
        return self.take(self.free[index][2]) if index < len(self.free) else None


class Allocator:
    """The caching allocator, with native or with expandable segments."""

    def __init__(self, expandable_segments: bool):
        self.expandable_segments = expandable_segments
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self._small, self._large = Pool(is_small=True), Pool(is_small=False)
        self._blocks: dict[int, Block] = {}

    def replay(self, log: Iterable[int], sizes: Sequence[int]) -> None:
        """Allocate and release as a heap's log says: n for a new tensor n, ~n for its end."""
        for entry in log:
            if entry < 0:
                self.release(~entry)
            elif sizes[entry]:
                self.allocate(entry, sizes[entry])

    def allocate(self, key: int, num_bytes: int) -> None:
        """Give tensor `key` a block of at least `num_bytes`, a multiple of 512."""
        pool = self._small if num_bytes <= SMALL_BYTES else self._large
        block = pool.best_fit(num_bytes) or self._grow(pool, num_bytes)
        self._split(block, num_bytes)
        self._blocks[key] = block
        self.allocated_bytes += block.num_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def release(self, key: int) -> None:
        """Free the block of tensor `key`, and merge it with its free neighbours."""
        block = self._blocks.pop(key, None)
        if block is None:
            return
        pool = block.pool
        self.allocated_bytes -= block.num_bytes
        if block.next is not None and block.next.is_free:
            self._absorb_next(block)
        if block.previous is not None and block.previous.is_free:
            block = pool.take(block.previous)
            self._absorb_next(block, is_taken=True)
        pool.put(block)

    def empty_cache(self) -> None:
        """Give back the native segments that hold nothing (`torch.cuda.empty_cache`)."""
        for pool in (self._small, self._large):
            for *_, block in tuple(pool.free):
                if block.previous is None and block.next is None and not self.expandable_segments:
                    pool.take(block)
                    self.reserved_bytes -= block.num_bytes

    def _grow(self, pool: Pool, num_bytes: int) -> Block:
        """A free block behind all others: a new segment, or more of the expandable one."""
        last = pool.end
        address = last.address + last.num_bytes if last else 0
        if not self.expandable_segments:
            return self._reserve(Block(pool, address, 0), _segment_bytes(pool, num_bytes))
        block = pool.take(last) if last and last.is_free else Block(pool, address, 0, last)
        if last and block is not last:
            last.next = block
        return self._reserve(block, _round_up(num_bytes - block.num_bytes, pool.segment_bytes))

    def _reserve(self, block: Block, num_bytes: int) -> Block:
        """The same block, larger by memory that is new to the process."""
        block.num_bytes += num_bytes
        block.pool.end = block
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _split(self, block: Block, num_bytes: int) -> None:
        """Cut what an allocation does not need off its block, unless so little is left that native segments keep it."""
        rest_bytes = block.num_bytes - num_bytes
        cuts_everything = self.expandable_segments or block.pool.is_small
        if rest_bytes < LEAST_BLOCK_BYTES or (not cuts_everything and rest_bytes <= SMALL_BYTES):
            return
        block.num_bytes = num_bytes
        rest = Block(block.pool, block.address + num_bytes, rest_bytes, block)
        rest.next, block.next = block.next, rest
        if rest.next is not None:
            rest.next.previous = rest
        if block.pool.end is block:
            block.pool.end = rest
        block.pool.put(rest)

    def _absorb_next(self, block: Block, is_taken: bool = False) -> None:
        """Merge a block with its right neighbour, which is free unless it `is_taken`."""
        gone = block.next
        assert gone is not None
        if not is_taken:
            block.pool.take(gone)
        block.num_bytes += gone.num_bytes
        block.next = gone.next
        if block.next is not None:
            block.next.previous = block
        if block.pool.end is gone:
            block.pool.end = block


def _segment_bytes(pool: Pool, num_bytes: int) -> int:
    """Size of a new native segment for this allocation."""
    if pool.is_small or num_bytes < LEAST_OWN_SEGMENT_BYTES:
        return pool.segment_bytes
    return _round_up(num_bytes, OWN_SEGMENT_ROUNDING_BYTES)


def _round_up(num_bytes: int, multiple: int) -> int:
    return -(-num_bytes // multiple) * multiple
