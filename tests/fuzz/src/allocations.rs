//! Counts what the current thread allocates, so that a length field that makes a parser ask for gigabytes is seen even where
//! the system would hand them out.
#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with a count kept.
#[derive(Debug)]
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
    MOST.set(MOST.get().max(HELD.get()));
}

/// A layout is never longer than `isize::MAX`.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Runs `action`, which may not hold more than `limit` bytes at any time on top of what was held before.
///
/// # Panics
/// If it did.
pub fn within<T>(limit: usize, action: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    let outer = MOST.replace(before);
    let result = action();
    let most = MOST.get() - before;
    MOST.set(MOST.get().max(outer));
    assert!(most <= signed(limit), "{most} bytes were allocated, {limit} is the limit");
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_at_once_counts() {
        within(1000, || (0..100).for_each(|_| drop(std::hint::black_box(vec![1_u8; 900]))));
        assert!(
            std::panic::catch_unwind(|| within(1000, || std::hint::black_box(vec![1_u8; 1001]))).is_err()
        );
        let lazy = || drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 28)));
        assert!(std::panic::catch_unwind(|| within(1 << 20, lazy)).is_err());
    }
}
