"""PyTorch's caching allocator: which blocks and segments a log of allocations and releases needs.

Source: c10/cuda/CUDACachingAllocator.cpp (torch 2.13): get_allocation_size, should_split,
get_free_block, try_merge_blocks, try_allocate_expandable_block. One stream, never out of memory.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from core.memory.simulator.device_memory import round_up

MIB = 2**20
SMALL_BYTES = 1 * MIB
"""Allocations up to this size come from the small pool (kSmallSize)."""
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
"""Segment of the large pool for allocations below MIN_OWN_SEGMENT_BYTES (kLargeBuffer)."""
MIN_OWN_SEGMENT_BYTES = 10 * MIB
"""Allocations from this size on get a segment of their own (kMinLargeAlloc)."""
OWN_SEGMENT_ROUNDING_BYTES = 2 * MIB
MIN_BLOCK_BYTES = 512


class MemoryBlock:
    """Range of a segment, allocated or free."""

    __slots__ = ("address", "is_free", "next", "num_bytes", "pool", "previous")

    def __init__(
        self, pool: "Pool", address: int, num_bytes: int, previous: "MemoryBlock | None" = None
    ):
        self.pool = pool
        self.address = address
        self.num_bytes = num_bytes
        self.previous = previous
        self.next: MemoryBlock | None = None
        self.is_free = False


class Pool:
    """Segments for small or for large allocations."""

    def __init__(self, is_small: bool):
        self.segment_bytes = SMALL_SEGMENT_BYTES if is_small else LARGE_SEGMENT_BYTES
        self.is_small = is_small
        self.free: list[tuple[int, int, MemoryBlock]] = []
        """Free blocks ordered by size, then address: the first that is large enough fits best."""
        self.last: MemoryBlock | None = None
        """Last block of the last segment."""

    def add(self, block: MemoryBlock) -> None:
        """Add a free block."""
        block.is_free = True
        insort(self.free, (block.num_bytes, block.address, block))

    def remove(self, block: MemoryBlock) -> MemoryBlock:
        """Remove a free block and return it."""
        block.is_free = False
        del self.free[bisect_left(self.free, (block.num_bytes, block.address))]
        return block

    def remove_best_fit(self, num_bytes: int) -> MemoryBlock | None:
        """Remove and return the smallest free block that is large enough, None if there is none."""
        index = bisect_left(self.free, (num_bytes,))
        if index < len(self.free):
            return self.remove(self.free[index][2])
        return None


class Allocator:
    """Caching allocator with native or with expandable segments."""

    def __init__(self, expandable_segments: bool):
        self.expandable_segments = expandable_segments
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self._small, self._large = Pool(is_small=True), Pool(is_small=False)
        self._blocks: dict[int, MemoryBlock] = {}

    def replay(self, log: Iterable[int], sizes: Sequence[int]) -> None:
        """Allocate and release as the log of a DeviceMemory says."""
        for entry in log:
            if entry < 0:
                self.release(~entry)
            elif sizes[entry]:
                self.allocate(entry, sizes[entry])

    def allocate(self, key: int, num_bytes: int) -> None:
        """Give tensor `key` a block of at least `num_bytes`, which is a multiple of 512."""
        pool = self._small if num_bytes <= SMALL_BYTES else self._large
        block = pool.remove_best_fit(num_bytes) or self._grow(pool, num_bytes)
        self._split(block, num_bytes)
        self._blocks[key] = block
        self.allocated_bytes += block.num_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def release(self, key: int) -> None:
        """Free the block of tensor `key` and merge it with its free neighbours."""
        block = self._blocks.pop(key, None)
        if block is None:  # a tensor of 0 bytes
            return
        pool = block.pool
        self.allocated_bytes -= block.num_bytes
        if block.next is not None and block.next.is_free:
            self._absorb(block, pool.remove(block.next))
        if block.previous is not None and block.previous.is_free:
            previous = pool.remove(block.previous)
            self._absorb(previous, block)
            block = previous
        pool.add(block)

    def empty_cache(self) -> None:
        """Return native segments without a live tensor to the driver (`torch.cuda.empty_cache`)."""
        for pool in (self._small, self._large):
            for *_, block in tuple(pool.free):
                if block.previous is None and block.next is None and not self.expandable_segments:
                    pool.remove(block)
                    self.reserved_bytes -= block.num_bytes

    def _grow(self, pool: Pool, num_bytes: int) -> MemoryBlock:
        """Reserve a new segment, or more of the expandable one, and return its block."""
        last = pool.last
        address = last.address + last.num_bytes if last else 0
        if not self.expandable_segments:
            segment_bytes = pool.segment_bytes
            if not pool.is_small and num_bytes >= MIN_OWN_SEGMENT_BYTES:
                segment_bytes = round_up(num_bytes, OWN_SEGMENT_ROUNDING_BYTES)
            return self._reserve(MemoryBlock(pool, address, 0), segment_bytes)
        if last and last.is_free:
            block = pool.remove(last)
        else:
            block = MemoryBlock(pool, address, 0, last)
            if last:
                last.next = block
        return self._reserve(block, round_up(num_bytes - block.num_bytes, pool.segment_bytes))

    def _reserve(self, block: MemoryBlock, num_bytes: int) -> MemoryBlock:
        """Extend the last block by memory that is new to the process, and return it."""
        block.num_bytes += num_bytes
        block.pool.last = block
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _split(self, block: MemoryBlock, num_bytes: int) -> None:
        """Cut a block to the size that is needed and free the rest.

        Large native segments keep a rest of up to 1 MiB: so small a block would serve no other
        allocation of the large pool (should_split).
        """
        rest_bytes = block.num_bytes - num_bytes
        keeps_small_rest = not (self.expandable_segments or block.pool.is_small)
        if rest_bytes < MIN_BLOCK_BYTES or (keeps_small_rest and rest_bytes <= SMALL_BYTES):
            return
        block.num_bytes = num_bytes
        rest = MemoryBlock(block.pool, block.address + num_bytes, rest_bytes, block)
        rest.next = block.next
        block.next = rest
        if rest.next is not None:
            rest.next.previous = rest
        if block.pool.last is block:
            block.pool.last = rest
        block.pool.add(rest)

    def _absorb(self, block: MemoryBlock, following: MemoryBlock) -> None:
        """Merge a block with its right neighbour; neither is in the list of free blocks."""
        block.num_bytes += following.num_bytes
        block.next = following.next
        if block.next is not None:
            block.next.previous = block
        if block.pool.last is following:
            block.pool.last = block
