//! The bytes of one simulated file: sparse pages, shared until they are written.
//!
//! Invariant: no byte at or above `length` is anything but zero.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Grain of allocation.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Grain of tearing: a sector holds old or new bytes, never a mixture.
pub(super) const SECTOR_BYTES: u64 = 512;

type Page = [u8; PAGE_BYTES as usize];

#[derive(Clone, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Rc<Page>>,
    length: u64,
}

impl Content {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Pages that take space.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Pages of `[start, end)` that take no space yet.
    pub(super) fn pages_missing(&self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        let (first, end) = (start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        end - first - self.pages.range(first..end).count() as u64
    }

    /// Puts bytes at `position`, growing the file if needed.
    pub(super) fn write(&mut self, position: u64, bytes: &[u8]) {
        self.length = self.length.max(position + bytes.len() as u64);
        let mut position = position;
        let mut left = bytes;
        while !left.is_empty() {
            let within = (position % PAGE_BYTES) as usize;
            let count = left.len().min(PAGE_BYTES as usize - within);
            let (now, later) = left.split_at(count);
            self.page(position / PAGE_BYTES)[within..within + count].copy_from_slice(now);
            position += count as u64;
            left = later;
        }
    }

    /// Puts zeroes into `[start, end)` (whole sectors), growing the file if needed.
    pub(super) fn zero(&mut self, start: u64, end: u64) {
        self.length = self.length.max(end);
        let blank = Rc::new([0; PAGE_BYTES as usize]);
        let mut position = start;
        while position < end {
            let next = end.min((position / PAGE_BYTES + 1) * PAGE_BYTES);
            if next - position == PAGE_BYTES {
                self.pages.insert(position / PAGE_BYTES, blank.clone());
            } else {
                let within = (position % PAGE_BYTES) as usize;
                self.page(position / PAGE_BYTES)[within..within + (next - position) as usize].fill(0);
            }
            position = next;
        }
    }

    pub(super) fn set_length(&mut self, length: u64) {
        if length < self.length {
            let kept = length.div_ceil(PAGE_BYTES);
            self.pages.split_off(&kept);
            let within = (length % PAGE_BYTES) as usize;
            if within > 0 && self.pages.contains_key(&(length / PAGE_BYTES)) {
                self.page(length / PAGE_BYTES)[within..].fill(0);
            }
        }
        self.length = length;
    }

    /// Bytes at `position`: fewer than `count` at the end of the file.
    pub(super) fn read(&self, position: u64, count: u64) -> Vec<u8> {
        let end = self.length.min(position.saturating_add(count));
        let mut bytes = Vec::with_capacity(end.saturating_sub(position) as usize);
        let mut position = position;
        while position < end {
            let within = (position % PAGE_BYTES) as usize;
            let step = (PAGE_BYTES - position % PAGE_BYTES).min(end - position);
            match self.pages.get(&(position / PAGE_BYTES)) {
                Some(page) => bytes.extend_from_slice(&page[within..within + step as usize]),
                None => bytes.resize(bytes.len() + step as usize, 0),
            }
            position += step;
        }
        bytes
    }

    /// Flips bits of one byte. False if nothing is there.
    pub(super) fn flip(&mut self, position: u64, mask: u8) -> bool {
        if position >= self.length {
            return false;
        }
        self.page(position / PAGE_BYTES)[(position % PAGE_BYTES) as usize] ^= mask;
        true
    }

    fn page(&mut self, number: u64) -> &mut Page {
        Rc::make_mut(self.pages.entry(number).or_insert_with(|| Rc::new([0; PAGE_BYTES as usize])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_bytes_do_not_come_back() {
        let mut content = Content::default();
        content.write(0, &[1; 5000]);
        content.set_length(100);
        content.set_length(9000);
        let bytes = content.read(0, 10_000);
        assert_eq!(bytes.len(), 9000);
        assert!(bytes[..100].iter().all(|&byte| byte == 1) && bytes[100..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn zeroing_spares_what_is_beside_it() {
        let mut content = Content::default();
        content.write(0, &[1; 3 * PAGE_BYTES as usize]);
        content.zero(SECTOR_BYTES, 2 * PAGE_BYTES + SECTOR_BYTES);
        let bytes = content.read(0, 3 * PAGE_BYTES);
        let ones = bytes.iter().filter(|&&byte| byte == 1).count() as u64;
        assert_eq!(ones, SECTOR_BYTES + PAGE_BYTES - SECTOR_BYTES);
        assert_eq!(content.pages_missing(0, 4 * PAGE_BYTES), 1);
    }
}
