//! Aligned memory of one shard, with a fixed budget.
//!
//! Owns: the arena, its free lists, and who waits for memory.
//! Invariant: a byte below a buffer's `filled` mark never changes while a [`DmaSlice`] can see it; the one
//! writer only appends above the mark. So the kernel (disk, socket) and readers share the bytes without copies.
//! Invariant: allocated bytes never pass `bytes_max`; who asks for more waits, first come first served.
//! Not here: who evicts cached buffers when memory is short (`log/cache.rs`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::{Deref, Range};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::disk::BLOCK_BYTES;

/// Largest buffer: one device write of this size is near the device's best rate, and a class above it would
/// fragment the arena.
pub const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Orders of the buddy allocator: 4 KiB << 0 ..= 4 KiB << 8.
const ORDERS: usize = (BUFFER_BYTES_MAX / BLOCK_BYTES).ilog2() as usize + 1;

const _: () = assert!(BLOCK_BYTES << (ORDERS - 1) == BUFFER_BYTES_MAX);

/// A shard's aligned memory. Cheap to clone; all clones share one budget.
#[derive(Clone)]
pub struct BufferPool(Rc<PoolState>);

struct PoolState {
    arena: NonNull<u8>,
    bytes_max: usize,
    used_bytes: Cell<usize>,
    free: RefCell<FreeLists>,
    /// Who waits, by ticket: the lowest is served first.
    waiters: RefCell<BTreeMap<u64, Rc<Waiter>>>,
    next_ticket: Cell<u64>,
}

/// The free blocks of the arena, named by the number of the smallest block that they start with.
///
/// Invariant: a block of order n is aligned to its size within the arena, and no two free buddies exist: they
/// are one block of the next order. Every operation is O([`ORDERS`]).
struct FreeLists {
    /// Free blocks by order, the last freed at the end: it is taken first, as its bytes are likely in the cache.
    lists: [Vec<u32>; ORDERS],
    /// For each smallest block: what starts there, so that a freed block finds its buddy.
    starts: Vec<Start>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// No free block starts here.
    Nothing,
    /// A free block of this order, at this index of its list.
    Free { order: u8, at: u32 },
}

struct Waiter {
    bytes: usize,
    granted: RefCell<Option<DmaBuffer>>,
    waker: RefCell<Option<Waker>>,
}

impl FreeLists {
    fn new(bytes_max: usize) -> Self {
        let mut free =
            Self { lists: Default::default(), starts: vec![Start::Nothing; bytes_max / BLOCK_BYTES] };
        let step = BUFFER_BYTES_MAX / BLOCK_BYTES;
        for i in (0..bytes_max / BUFFER_BYTES_MAX).rev() {
            free.add((i * step) as u32, ORDERS - 1);
        }
        free
    }

    fn add(&mut self, block: u32, order: usize) {
        let at = self.lists[order].len() as u32;
        self.lists[order].push(block);
        self.starts[block as usize] = Start::Free { order: order as u8, at };
    }

    fn remove(&mut self, order: usize, at: u32) -> u32 {
        let block = self.lists[order].swap_remove(at as usize);
        self.starts[block as usize] = Start::Nothing;
        // The last of the list has taken its place.
        if let Some(&moved) = self.lists[order].get(at as usize) {
            self.starts[moved as usize] = Start::Free { order: order as u8, at };
        }
        block
    }

    /// The start of a block of `order`, split from a larger one if need be.
    fn take(&mut self, order: usize) -> Option<u32> {
        let found = (order..ORDERS).find(|&o| !self.lists[o].is_empty())?;
        let block = self.remove(found, self.lists[found].len() as u32 - 1);
        for o in (order..found).rev() {
            self.add(block + (1 << o), o);
        }
        Some(block)
    }

    /// Takes a block back, and joins it with its buddy as often as that is free.
    fn give_back(&mut self, mut block: u32, mut order: usize) {
        assert_eq!(self.starts[block as usize], Start::Nothing, "block {block} is given back twice");
        while order < ORDERS - 1 {
            let buddy = block ^ (1 << order);
            match self.starts[buddy as usize] {
                Start::Free { order: free, at } if free as usize == order => self.remove(order, at),
                _ => break,
            };
            block &= !(1 << order);
            order += 1;
        }
        self.add(block, order);
    }
}

impl BufferPool {
    /// Reserves address space for `bytes_max` bytes (rounded down to whole [`BUFFER_BYTES_MAX`]); the kernel
    /// gives the pages when they are first touched, and they stay. Huge pages where the kernel has them: an
    /// append of 1 MiB batches then takes 0.78 of the CPU time (0.66 unsynced; 2026-11-24, medians of 3, A B A B),
    /// because direct I/O looks up one page instead of 256.
    ///
    /// # Panics
    /// If `bytes_max` is below [`BUFFER_BYTES_MAX`] or the address space cannot be had: a shard cannot start.
    pub fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max / BUFFER_BYTES_MAX * BUFFER_BYTES_MAX;
        assert!(bytes_max > 0, "a buffer pool holds at least one buffer of {BUFFER_BYTES_MAX} bytes");
        // SAFETY: an anonymous private mapping of a positive length has no preconditions.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes_max,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(address != libc::MAP_FAILED, "no address space for {bytes_max} bytes of buffers");
        // SAFETY: the range is the mapping made above. A kernel without huge pages refuses, and nothing is lost.
        unsafe { libc::madvise(address, bytes_max, libc::MADV_HUGEPAGE) };
        let arena = NonNull::new(address.cast::<u8>()).expect("mmap never returns null on success");
        Self(Rc::new(PoolState {
            arena,
            bytes_max,
            used_bytes: Cell::new(0),
            free: RefCell::new(FreeLists::new(bytes_max)),
            waiters: RefCell::default(),
            next_ticket: Cell::new(0),
        }))
    }

    /// The budget.
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// What is handed out now.
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.get()
    }

    /// How many are waiting for memory.
    pub fn waiters(&self) -> usize {
        self.0.waiters.borrow().len()
    }

    /// A buffer of at least `bytes` (rounded up to a power of two of blocks), or `None` if the memory is not
    /// there or others wait for it.
    ///
    /// # Panics
    /// If `bytes` is 0 or above [`BUFFER_BYTES_MAX`].
    pub fn try_allocate(&self, bytes: usize) -> Option<DmaBuffer> {
        if !self.0.waiters.borrow().is_empty() {
            return None;
        }
        self.take(bytes)
    }

    /// Like [`BufferPool::try_allocate`], but waits its turn. Dropping the future gives up the place.
    pub fn allocate(&self, bytes: usize) -> impl Future<Output = DmaBuffer> + 'static {
        Allocate { pool: self.clone(), bytes, place: None }
    }

    fn take(&self, bytes: usize) -> Option<DmaBuffer> {
        let order = order_of(bytes);
        let block = self.0.free.borrow_mut().take(order)?;
        let capacity = BLOCK_BYTES << order;
        self.0.used_bytes.set(self.0.used_bytes.get() + capacity);
        // SAFETY: `block` lies within the arena, so the address is inside the mapping and not null.
        let address = unsafe { self.0.arena.add(block as usize * BLOCK_BYTES) };
        Some(DmaBuffer {
            memory: Rc::new(Memory { pool: self.clone(), address, capacity, block, order: order as u8 }),
            filled: 0,
        })
    }

    fn give_back(&self, block: u32, order: u8) {
        let capacity = BLOCK_BYTES << order;
        self.0.used_bytes.set(self.0.used_bytes.get() - capacity);
        self.0.free.borrow_mut().give_back(block, order as usize);
        self.serve_waiters();
    }

    fn serve_waiters(&self) {
        loop {
            let Some(bytes) = self.0.waiters.borrow().first_key_value().map(|(_, first)| first.bytes) else {
                return;
            };
            let Some(buffer) = self.take(bytes) else { return };
            let (_, first) = self.0.waiters.borrow_mut().pop_first().expect("the one just looked at");
            *first.granted.borrow_mut() = Some(buffer);
            // Outside all borrows: a waker may run anything.
            let waker = first.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Drop for PoolState {
    fn drop(&mut self) {
        // SAFETY: every buffer holds a clone of the pool, so nobody sees the mapping any more.
        unsafe { libc::munmap(self.arena.as_ptr().cast(), self.bytes_max) };
    }
}

fn order_of(bytes: usize) -> usize {
    assert!(bytes > 0 && bytes <= BUFFER_BYTES_MAX, "no buffer holds {bytes} bytes");
    bytes.div_ceil(BLOCK_BYTES).next_power_of_two().ilog2() as usize
}

struct Allocate {
    pool: BufferPool,
    bytes: usize,
    /// The place in the queue, once it waits.
    place: Option<(u64, Rc<Waiter>)>,
}

impl Future for Allocate {
    type Output = DmaBuffer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<DmaBuffer> {
        if let Some((_, waiter)) = &self.place {
            if let Some(buffer) = waiter.granted.borrow_mut().take() {
                return Poll::Ready(buffer);
            }
            *waiter.waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(buffer) = self.pool.try_allocate(self.bytes) {
            return Poll::Ready(buffer);
        }
        let waiter = Rc::new(Waiter {
            bytes: self.bytes,
            granted: RefCell::new(None),
            waker: RefCell::new(Some(cx.waker().clone())),
        });
        let ticket = self.pool.0.next_ticket.get();
        self.pool.0.next_ticket.set(ticket + 1);
        self.pool.0.waiters.borrow_mut().insert(ticket, waiter.clone());
        self.place = Some((ticket, waiter));
        Poll::Pending
    }
}

impl Drop for Allocate {
    fn drop(&mut self) {
        if let Some((ticket, waiter)) = self.place.take() {
            let left = self.pool.0.waiters.borrow_mut().remove(&ticket);
            // A buffer granted but not taken goes back with the waiter.
            drop(waiter);
            if left.is_some() {
                // It may have been the first, and held up smaller ones behind it.
                drop(left);
                self.pool.serve_waiters();
            }
        }
    }
}

struct Memory {
    pool: BufferPool,
    address: NonNull<u8>,
    capacity: usize,
    block: u32,
    order: u8,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pool.give_back(self.block, self.order);
    }
}

/// A buffer with one writer, who appends; what is filled can be shared as [`DmaSlice`].
///
/// Shape: address aligned to [`BLOCK_BYTES`], capacity a power of two of blocks.
pub struct DmaBuffer {
    memory: Rc<Memory>,
    filled: usize,
}

impl DmaBuffer {
    /// Bytes that fit in all.
    pub fn capacity(&self) -> usize {
        self.memory.capacity
    }

    /// Bytes that are there; they never change again.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes that still fit.
    pub fn spare(&self) -> usize {
        self.memory.capacity - self.filled
    }

    /// Copies `bytes` behind what is there.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn append(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.spare(), "{} bytes into {} spare ones", bytes.len(), self.spare());
        // SAFETY: the range lies within the buffer, above `filled`, so no slice sees it; `self` is the one writer.
        unsafe {
            let to = self.memory.address.as_ptr().add(self.filled);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.filled += bytes.len();
    }

    /// Appends `count` zero bytes.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn append_zeroes(&mut self, count: usize) {
        assert!(count <= self.spare(), "{count} zeroes into {} spare bytes", self.spare());
        // SAFETY: as in `append`.
        unsafe { std::ptr::write_bytes(self.memory.address.as_ptr().add(self.filled), 0, count) };
        self.filled += count;
    }

    /// Where a kernel read or a `recv` may put `spare()` bytes.
    pub fn spare_ptr(&mut self) -> *mut u8 {
        // SAFETY: `filled` never passes the capacity, so the address is within or one past the allocation.
        unsafe { self.memory.address.as_ptr().add(self.filled) }
    }

    /// Counts `count` bytes, put at [`DmaBuffer::spare_ptr`], as filled.
    ///
    /// # Safety
    /// They have been initialised.
    ///
    /// # Panics
    /// If they do not fit.
    pub unsafe fn add_filled(&mut self, count: usize) {
        assert!(count <= self.spare(), "{count} bytes into {} spare ones", self.spare());
        self.filled += count;
    }

    /// Shares filled bytes without copying them.
    ///
    /// # Panics
    /// If the range is not below `filled()`.
    pub fn slice(&self, range: Range<usize>) -> DmaSlice {
        assert!(
            range.start <= range.end && range.end <= self.filled,
            "{range:?} of {} filled bytes",
            self.filled
        );
        DmaSlice { memory: self.memory.clone(), start: range.start, end: range.end }
    }

    /// The filled bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: all below `filled` is initialised and never changes.
        unsafe { std::slice::from_raw_parts(self.memory.address.as_ptr(), self.filled) }
    }

    /// Whether nobody else sees the bytes: no slice is alive.
    pub fn is_unshared(&self) -> bool {
        Rc::strong_count(&self.memory) == 1
    }

    /// Forgets what was filled, so that the memory can be used again.
    ///
    /// # Panics
    /// If a slice is alive.
    pub fn clear(&mut self) {
        assert!(self.is_unshared(), "a buffer that others see cannot be cleared");
        self.filled = 0;
    }
}

/// Bytes of a [`DmaBuffer`], immutable and shared. Cheap to clone; the memory goes back to its pool with the
/// last of them.
#[derive(Clone)]
pub struct DmaSlice {
    memory: Rc<Memory>,
    start: usize,
    end: usize,
}

impl DmaSlice {
    /// A part of this slice.
    ///
    /// # Panics
    /// If the range is not within it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} bytes", self.len());
        Self { memory: self.memory.clone(), start: self.start + range.start, end: self.start + range.end }
    }
}

impl Deref for DmaSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range was below `filled` when the slice was made, and such bytes never change.
        unsafe {
            std::slice::from_raw_parts(self.memory.address.as_ptr().add(self.start), self.end - self.start)
        }
    }
}

impl std::fmt::Debug for DmaSlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaSlice({} bytes)", self.len())
    }
}

impl std::fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaBuffer({} of {} bytes)", self.filled, self.capacity())
    }
}

#[cfg(test)]
mod tests;
