//! Aligned memory of one shard, with a fixed budget.
//!
//! Owns: the arena, its free lists, and who waits for memory.
//! Invariant: a byte below a buffer's `filled` mark never changes while a [`DmaSlice`] can see it; the one
//! writer only appends above the mark. So the kernel (disk, socket) and readers share the bytes without copies.
//! Invariant: allocated bytes never pass `bytes_max`; who asks for more waits, first come first served.
//! Not here: who evicts cached buffers when memory is short (`log/cache.rs`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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
    /// Free block numbers by order; a block of order n is aligned to its size within the arena.
    free: RefCell<[Vec<u32>; ORDERS]>,
    /// For each smallest block: order + 1 if a free block starts there, else 0. Lets a freed block find its buddy.
    free_order: RefCell<Vec<u8>>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    bytes: usize,
    granted: RefCell<Option<DmaBuffer>>,
    waker: RefCell<Option<Waker>>,
    dropped: Cell<bool>,
}

impl BufferPool {
    /// Reserves address space for `bytes_max` bytes (rounded down to whole [`BUFFER_BYTES_MAX`]); the kernel
    /// gives the pages when they are first touched, and they stay.
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
        let arena = NonNull::new(address.cast::<u8>()).expect("mmap never returns null on success");
        let largest = bytes_max / BUFFER_BYTES_MAX;
        let step = BUFFER_BYTES_MAX / BLOCK_BYTES;
        let mut free: [Vec<u32>; ORDERS] = Default::default();
        let mut free_order = vec![0; bytes_max / BLOCK_BYTES];
        for i in (0..largest).rev() {
            free[ORDERS - 1].push((i * step) as u32);
            free_order[i * step] = ORDERS as u8;
        }
        Self(Rc::new(PoolState {
            arena,
            bytes_max,
            used_bytes: Cell::new(0),
            free: RefCell::new(free),
            free_order: RefCell::new(free_order),
            waiters: RefCell::default(),
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
        Allocate { pool: self.clone(), bytes, waiter: None }
    }

    fn take(&self, bytes: usize) -> Option<DmaBuffer> {
        let order = order_of(bytes);
        let mut free = self.0.free.borrow_mut();
        let mut marks = self.0.free_order.borrow_mut();
        let found = (order..ORDERS).find(|&o| !free[o].is_empty())?;
        let block = free[found].pop().expect("the order found has a free block");
        marks[block as usize] = 0;
        for o in (order..found).rev() {
            let buddy = block + (1 << o);
            free[o].push(buddy);
            marks[buddy as usize] = o as u8 + 1;
        }
        let capacity = BLOCK_BYTES << order;
        self.0.used_bytes.set(self.0.used_bytes.get() + capacity);
        // SAFETY: `block` lies within the arena, so the address is inside the mapping and not null.
        let address = unsafe { self.0.arena.add(block as usize * BLOCK_BYTES) };
        Some(DmaBuffer {
            memory: Rc::new(Memory { pool: self.clone(), address, capacity, block, order: order as u8 }),
            filled: 0,
        })
    }

    fn give_back(&self, mut block: u32, order: u8) {
        let capacity = BLOCK_BYTES << order;
        self.0.used_bytes.set(self.0.used_bytes.get() - capacity);
        {
            let mut free = self.0.free.borrow_mut();
            let mut marks = self.0.free_order.borrow_mut();
            let mut order = order as usize;
            while order < ORDERS - 1 {
                let buddy = block ^ (1 << order);
                if marks[buddy as usize] != order as u8 + 1 {
                    break;
                }
                let at =
                    free[order].iter().rposition(|&b| b == buddy).expect("a marked block is in its list");
                free[order].swap_remove(at);
                marks[buddy as usize] = 0;
                block &= !(1 << order);
                order += 1;
            }
            free[order].push(block);
            marks[block as usize] = order as u8 + 1;
        }
        self.serve_waiters();
    }

    fn serve_waiters(&self) {
        loop {
            let Some(first) = self.0.waiters.borrow().front().cloned() else { return };
            if !first.dropped.get() {
                let Some(buffer) = self.take(first.bytes) else { return };
                *first.granted.borrow_mut() = Some(buffer);
                if let Some(waker) = first.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
            self.0.waiters.borrow_mut().pop_front();
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
    waiter: Option<Rc<Waiter>>,
}

impl Future for Allocate {
    type Output = DmaBuffer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<DmaBuffer> {
        if let Some(waiter) = &self.waiter {
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
            dropped: Cell::new(false),
        });
        self.pool.0.waiters.borrow_mut().push_back(waiter.clone());
        self.waiter = Some(waiter);
        Poll::Pending
    }
}

impl Drop for Allocate {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.dropped.set(true);
            // A buffer granted but not taken goes back; a dropped waiter must not hold up those behind it.
            let granted = waiter.granted.borrow_mut().take();
            drop(granted);
            self.pool.serve_waiters();
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
