//! The pool by stories, and its allocator against a model.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use proptest::prelude::*;

use super::*;

struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Polls with a waker that counts its calls.
struct Poller(Arc<Counter>);

impl Poller {
    fn new() -> Self {
        Self(Arc::new(Counter(AtomicUsize::new(0))))
    }

    fn poll<F: Future + ?Sized>(&self, future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(&Waker::from(self.0.clone()))) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn wakes(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }
}

fn whole(pool: &BufferPool) -> Vec<DmaBuffer> {
    std::iter::from_fn(|| pool.try_allocate(BUFFER_BYTES_MAX)).collect()
}

#[test]
fn sizes_round_up_to_powers_of_two_of_blocks() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    for (asked, given) in [(1, 4096), (4096, 4096), (4097, 8192), (20_000, 32_768), (600_000, 1 << 20)] {
        let buffer = pool.try_allocate(asked).expect("an empty pool");
        assert_eq!(buffer.capacity(), given, "for {asked} bytes");
        assert_eq!(buffer.memory.address.as_ptr() as usize % BLOCK_BYTES, 0);
        assert_eq!(pool.used_bytes(), given);
    }
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn the_budget_is_never_passed() {
    let pool = BufferPool::new(3 * BUFFER_BYTES_MAX + 5000);
    assert_eq!(pool.bytes_max(), 3 * BUFFER_BYTES_MAX, "rounded down to whole buffers");
    let buffers: Vec<_> = std::iter::from_fn(|| pool.try_allocate(BLOCK_BYTES)).collect();
    assert_eq!(buffers.len() * BLOCK_BYTES, pool.bytes_max());
    assert_eq!(pool.used_bytes(), pool.bytes_max());
    drop(buffers);
    assert_eq!(whole(&pool).len(), 3, "all blocks have joined again");
}

#[test]
#[should_panic(expected = "no buffer holds")]
fn a_buffer_above_the_maximum_is_a_bug() {
    BufferPool::new(BUFFER_BYTES_MAX).try_allocate(BUFFER_BYTES_MAX + 1);
}

#[test]
fn memory_lives_as_long_as_the_last_slice() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut buffer = pool.try_allocate(100).unwrap();
    buffer.append(b"hello world");
    let slice = buffer.slice(0..11);
    let part = slice.slice(6..11);
    assert!(!buffer.is_unshared());
    buffer.append(b"!");
    drop(buffer);
    drop(slice);
    assert_eq!(pool.used_bytes(), BLOCK_BYTES);
    assert_eq!(&*part, b"world");
    let keeper = part.clone();
    drop(pool);
    drop(part);
    assert_eq!(&*keeper, b"world", "a slice outlives every handle of its pool");
}

#[test]
fn filled_bytes_and_spare_ones() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut buffer = pool.try_allocate(BLOCK_BYTES).unwrap();
    buffer.append(b"abc");
    buffer.append_zeroes(2);
    // SAFETY: one byte is put where spare bytes begin, and counted after that.
    unsafe {
        buffer.spare_ptr().write(b'd');
        buffer.add_filled(1);
    }
    assert_eq!(buffer.bytes(), b"abc\0\0d");
    assert_eq!((buffer.filled(), buffer.spare()), (6, BLOCK_BYTES - 6));
    buffer.clear();
    assert_eq!((buffer.filled(), buffer.spare()), (0, BLOCK_BYTES));
    assert_eq!(buffer.slice(0..0).len(), 0);
}

#[test]
#[should_panic(expected = "cannot be cleared")]
fn a_buffer_that_others_see_is_not_cleared() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut buffer = pool.try_allocate(1).unwrap();
    let _slice = buffer.slice(0..0);
    buffer.clear();
}

#[test]
#[should_panic(expected = "of 3 filled bytes")]
fn bytes_that_are_not_filled_are_not_shared() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut buffer = pool.try_allocate(1).unwrap();
    buffer.append(b"abc");
    buffer.slice(1..4);
}

#[test]
fn waiters_are_served_in_order_and_nobody_overtakes() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let mut half = vec![pool.try_allocate(BUFFER_BYTES_MAX / 2).unwrap()];
    half.push(pool.try_allocate(BUFFER_BYTES_MAX / 2).unwrap());
    let (poller, mut large, mut small) =
        (Poller::new(), pin!(pool.allocate(BUFFER_BYTES_MAX)), pin!(pool.allocate(1)));
    assert!(poller.poll(large.as_mut()).is_none());
    assert!(poller.poll(small.as_mut()).is_none());
    assert_eq!(pool.waiters(), 2);

    half.pop();
    assert!(pool.try_allocate(1).is_none(), "half is free, but others wait for it");
    assert!(poller.poll(small.as_mut()).is_none(), "the small one does not overtake the large one");
    assert_eq!(poller.wakes(), 0);

    half.pop();
    assert_eq!(poller.wakes(), 1, "the first in the queue");
    let buffer = poller.poll(large.as_mut()).expect("the large one's turn");
    assert_eq!(buffer.capacity(), BUFFER_BYTES_MAX);
    drop(buffer);
    assert_eq!(poller.wakes(), 2);
    assert!(poller.poll(small.as_mut()).is_some());
    assert_eq!(pool.waiters(), 0);
}

#[test]
fn a_dropped_waiter_holds_nobody_up() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let all = pool.try_allocate(BUFFER_BYTES_MAX / 2).unwrap();
    let poller = Poller::new();
    let mut large = Box::pin(pool.allocate(BUFFER_BYTES_MAX));
    let mut small = pin!(pool.allocate(1));
    assert!(poller.poll(large.as_mut()).is_none());
    assert!(poller.poll(small.as_mut()).is_none(), "behind the large one, though half is free");
    drop(large);
    assert!(poller.poll(small.as_mut()).is_some(), "nothing stands before it any more");
    assert_eq!(pool.waiters(), 0);
    drop(all);
}

#[test]
fn a_buffer_granted_to_a_dropped_waiter_comes_back() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let all = whole(&pool);
    let poller = Poller::new();
    let mut first = Box::pin(pool.allocate(BUFFER_BYTES_MAX));
    let mut second = pin!(pool.allocate(BUFFER_BYTES_MAX));
    assert!(poller.poll(first.as_mut()).is_none());
    assert!(poller.poll(second.as_mut()).is_none());
    drop(all);
    assert_eq!(poller.wakes(), 1, "granted to the first, who does not come to take it");
    drop(first);
    assert!(poller.poll(second.as_mut()).is_some());
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn waiters_that_come_and_go_leave_nothing_behind() {
    let pool = BufferPool::new(BUFFER_BYTES_MAX);
    let _all = whole(&pool);
    let poller = Poller::new();
    let mut blocked = pin!(pool.allocate(1));
    assert!(poller.poll(blocked.as_mut()).is_none());
    for _ in 0..1000 {
        let mut passing = pin!(pool.allocate(1));
        assert!(poller.poll(passing.as_mut()).is_none());
    }
    assert_eq!(pool.waiters(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    /// Take a buffer of so many bytes.
    Take(usize),
    /// Wait for one.
    Wait(usize),
    /// Give back the buffer at this place (modulo those that are out).
    Give(usize),
    /// Give up the wait at this place (modulo those that wait).
    Leave(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![1..=20_000usize, Just(BUFFER_BYTES_MAX), 1..=BUFFER_BYTES_MAX];
    let step = prop_oneof![
        4 => bytes.clone().prop_map(Step::Take),
        2 => bytes.prop_map(Step::Wait),
        4 => any::<usize>().prop_map(Step::Give),
        1 => any::<usize>().prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 1..200)
}

/// What is out: no two overlap, all is within the arena, and the sum is what the pool says.
fn check(pool: &BufferPool, held: &[DmaBuffer]) {
    let start = pool.0.arena.as_ptr() as usize;
    let mut ranges: Vec<_> = held
        .iter()
        .map(|buffer| buffer.memory.address.as_ptr() as usize - start)
        .zip(held.iter().map(DmaBuffer::capacity))
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} overlap");
    }
    assert!(ranges.last().is_none_or(|last| last.0 + last.1 <= pool.bytes_max()));
    for (at, capacity) in ranges {
        assert_eq!(at % capacity, 0, "a buffer is aligned to its size within the arena");
    }
    let held_bytes: usize = held.iter().map(DmaBuffer::capacity).sum();
    assert_eq!(pool.used_bytes(), held_bytes);
    check_free_lists(pool);
}

/// Free blocks and used bytes make up the whole, and no two free buddies stand beside each other.
fn check_free_lists(pool: &BufferPool) {
    let free = pool.0.free.borrow();
    let mut free_bytes = 0;
    for (order, list) in free.lists.iter().enumerate() {
        for (at, &block) in list.iter().enumerate() {
            let start = Start::Free { order: order as u8, at: at as u32 };
            assert_eq!(free.starts[block as usize], start);
            free_bytes += BLOCK_BYTES << order;
            let buddy = free.starts[(block ^ (1 << order)) as usize % free.starts.len()];
            let joined = matches!(buddy, Start::Free { order: o, .. } if o as usize == order);
            assert!(order == ORDERS - 1 || !joined, "free buddies {block} of order {order}");
        }
    }
    let starts = free.starts.iter().filter(|start| **start != Start::Nothing).count();
    assert_eq!(starts, free.lists.iter().map(Vec::len).sum::<usize>());
    assert_eq!(free_bytes + pool.used_bytes(), pool.bytes_max());
}

type Wait = Pin<Box<dyn Future<Output = DmaBuffer>>>;

/// Takes what has been granted; the waits come back in their order, so a later one is never served alone.
fn collect(poller: &Poller, waits: &mut Vec<Wait>, held: &mut Vec<DmaBuffer>) {
    let mut blocked = false;
    waits.retain_mut(|wait| match poller.poll(wait.as_mut()) {
        Some(buffer) => {
            assert!(!blocked, "one that came later was served before one that waits");
            held.push(buffer);
            false
        }
        None => {
            blocked = true;
            true
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn buffers_never_overlap_and_all_memory_comes_back(steps in steps()) {
        let pool = BufferPool::new(3 * BUFFER_BYTES_MAX);
        let poller = Poller::new();
        let mut held: Vec<DmaBuffer> = Vec::new();
        let mut waits: Vec<Wait> = Vec::new();
        for step in steps {
            match step {
                Step::Take(bytes) => {
                    let taken = pool.try_allocate(bytes);
                    prop_assert!(taken.is_none() || waits.is_empty(), "overtook those who wait");
                    held.extend(taken);
                }
                Step::Wait(bytes) => waits.push(Box::pin(pool.allocate(bytes))),
                Step::Give(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Step::Leave(at) if !waits.is_empty() => drop(waits.remove(at % waits.len())),
                Step::Give(_) | Step::Leave(_) => {}
            }
            collect(&poller, &mut waits, &mut held);
            prop_assert_eq!(pool.waiters(), waits.len());
            check(&pool, &held);
        }
        drop(waits);
        held.clear();
        check(&pool, &held);
        prop_assert_eq!(whole(&pool).len(), 3, "all blocks have joined again");
    }
}
