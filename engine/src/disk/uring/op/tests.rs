//! What completions mean, without a kernel: short writes, ends of files, errors.

use std::rc::Weak;

use super::*;
use crate::buffer::BufferPool;

fn file() -> Rc<FileFd> {
    let fd = std::fs::File::open("/dev/null").expect("a descriptor").into();
    Rc::new(FileFd::new(fd, 0, Weak::new()))
}

fn slices(pool: &BufferPool, blocks: &[usize]) -> Vec<DmaSlice> {
    blocks
        .iter()
        .map(|count| {
            let mut buffer = pool.try_allocate(count * BLOCK_BYTES).expect("memory of the test");
            buffer.append_zeroes(count * BLOCK_BYTES);
            buffer.slice(0..count * BLOCK_BYTES)
        })
        .collect()
}

fn done(progress: Progress) -> io::Result<usize> {
    match progress {
        Progress::Done(result) => result,
        Progress::Again => panic!("there should be nothing more to do"),
    }
}

#[test]
fn a_short_write_goes_on_where_it_stopped() {
    let pool = BufferPool::new(1 << 20);
    let slices = slices(&pool, &[1, 2, 1]);
    let starts: Vec<usize> = slices.iter().map(|slice| slice.as_ptr() as usize).collect();
    let mut op = Op::Write(Write::new(file(), slices, 8192));
    // One slice and a half of the next.
    assert!(matches!(op.advance(2 * BLOCK_BYTES as i32), Progress::Again));
    let Op::Write(write) = &op else { unreachable!() };
    assert_eq!((write.next, write.position, write.left), (1, 8192 + 8192, 2 * BLOCK_BYTES));
    assert_eq!(write.iovecs[1].iov_base as usize, starts[1] + BLOCK_BYTES);
    assert_eq!(write.iovecs[1].iov_len, BLOCK_BYTES);
    assert_eq!(write.span(), 2);
    assert_eq!(done(op.advance(2 * BLOCK_BYTES as i32)).unwrap(), 4 * BLOCK_BYTES);
}

#[test]
fn a_write_that_takes_nothing_is_an_error_and_no_loop() {
    let pool = BufferPool::new(1 << 20);
    let mut op = Op::Write(Write::new(file(), slices(&pool, &[1]), 0));
    assert_eq!(done(op.advance(0)).unwrap_err().kind(), io::ErrorKind::WriteZero);
    assert_eq!(pool.used_bytes(), BLOCK_BYTES, "the memory stays until the operation is dropped");
    drop(op);
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn errors_are_the_kernels_own() {
    let pool = BufferPool::new(1 << 20);
    let mut op = Op::Write(Write::new(file(), slices(&pool, &[1]), 0));
    let error = done(op.advance(-libc::ENOSPC)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn long_vectors_are_cut_by_number_and_by_bytes() {
    let pool = BufferPool::new(16 << 20);
    let many = Write::new(file(), slices(&pool, &[1; 1500]), 0);
    assert_eq!(many.span(), IOVECS_MAX);
    let large = Write::new(file(), slices(&pool, &[256; 9]), 0);
    assert_eq!(large.span(), TRANSFER_BYTES_MAX >> 20);
    drop((many, large));
    let few = Write::new(file(), slices(&pool, &[256; 8]), 0);
    assert_eq!(few.span(), 8);
    assert!(Write::new(file(), Vec::new(), 0).is_empty());
}

#[test]
fn a_read_ends_at_the_end_of_the_file_and_goes_on_after_a_short_one() {
    let pool = BufferPool::new(1 << 20);
    let read = |pieces: &[i32]| {
        let buffer = pool.try_allocate(4 * BLOCK_BYTES).expect("memory of the test");
        let mut read = Read::new(file(), buffer, 4 * BLOCK_BYTES, 0, BLOCK_BYTES);
        // As the kernel would have done.
        read.buffer.append_zeroes(4 * BLOCK_BYTES);
        read.buffer.clear();
        let mut op = Op::Read(read);
        let (last, first) = pieces.split_last().expect("at least one completion");
        for &piece in first {
            assert!(matches!(op.advance(piece), Progress::Again), "after {piece} of {pieces:?}");
        }
        let count = done(op.advance(*last)).unwrap();
        let Op::Read(read) = op else { unreachable!() };
        assert_eq!(read.buffer.filled(), count);
        count
    };
    assert_eq!(read(&[4096, 4096, 4096, 4096]), 16384);
    assert_eq!(read(&[4096, 0]), 4096, "the file ends with a block");
    assert_eq!(read(&[4096, 904]), 5000, "the file ends within a block");
    assert_eq!(read(&[4096, 512]), 4608, "and a sector more may not be aligned for another read");
    assert_eq!(read(&[0]), 0);
}

#[test]
fn a_descriptor_nobody_takes_is_closed() {
    let mut op = Op::open(Path::new("/dev/null"), libc::O_RDONLY).unwrap();
    // SAFETY: a plain system call on a valid path.
    let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    assert!(fd >= 0);
    done(op.advance(fd)).unwrap();
    let inode = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}"));
    assert_eq!(inode(fd).unwrap(), Path::new("/dev/null"));
    drop(op);
    assert_ne!(inode(fd).ok().as_deref(), Some(Path::new("/dev/null")));
}

#[test]
fn paths_with_a_nul_are_refused() {
    let error = c_path(Path::new("a\0b")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
