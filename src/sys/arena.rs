//! The allocator where the libc is musl: a block of the program's own memory first, and musl's when that is used up.
//!
//! To parse a command line takes hundreds of small allocations, and the process soon becomes another. musl maps and
//! unmaps pages for them, which takes longer than the parsing itself; glibc does not. What is freed here is not used
//! again, unless it came last; a supervisor, which keeps running, allocates from musl as soon as the block is full.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Enough for a start, which takes three quarters of it, and little for a supervisor to waste.
const SIZE: usize = 128 << 10;

#[cfg_attr(not(test), global_allocator)]
#[cfg_attr(test, expect(dead_code, reason = "the tests' allocations are others"))]
static ALLOCATOR: Arena = Arena::new();

/// In this order, so that the first allocations are in the page that the count is in.
#[repr(C, align(16))]
struct Arena {
    used: AtomicUsize,
    memory: UnsafeCell<MaybeUninit<[u8; SIZE]>>,
}

// SAFETY: the part that a step of `used` covers belongs to what made that step alone.
unsafe impl Sync for Arena {}

impl Arena {
    const fn new() -> Arena {
        Arena { used: AtomicUsize::new(0), memory: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// A free part, if there is one.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let start = self.memory.get().addr();
        let place = |used: usize| (start + used).next_multiple_of(layout.align()) - start;
        let end = |used| place(used).checked_add(layout.size()).filter(|end| *end <= SIZE);
        let used = self.used.fetch_update(Relaxed, Relaxed, end).ok()?;
        Some(self.memory.get().cast::<u8>().wrapping_add(place(used)))
    }

    /// Where a part begins, if it is one of ours.
    fn offset(&self, part: *mut u8) -> Option<usize> {
        Some(part.addr().wrapping_sub(self.memory.get().addr())).filter(|offset| *offset < SIZE)
    }

    /// Make the part at `offset` larger or smaller where it is, which only the last one can be.
    fn resize(&self, offset: usize, from: usize, to: usize) -> bool {
        let fits = offset.checked_add(to).filter(|end| *end <= SIZE);
        fits.is_some_and(|end| self.used.compare_exchange(offset + from, end, Relaxed, Relaxed).is_ok())
    }
}

// SAFETY: a part is within the memory, aligned, and allocated once until it is freed; the rest is System's.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is the caller's.
        self.take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, part: *mut u8, layout: Layout) {
        match self.offset(part) {
            Some(offset) => _ = self.resize(offset, layout.size(), 0),
            // SAFETY: what is not ours came from System, and the layout is the caller's.
            None => unsafe { System.dealloc(part, layout) },
        }
    }

    unsafe fn realloc(&self, part: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(part) else {
            // SAFETY: what is not ours came from System, and the layout is the caller's.
            return unsafe { System.realloc(part, layout, size) };
        };
        if self.resize(offset, layout.size(), size) {
            return part;
        }
        // SAFETY: the caller promises that the new size makes a layout.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both have as many bytes, and the new part is another one.
            unsafe { ptr::copy_nonoverlapping(part, new, layout.size().min(size)) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Layout {
        Layout::from_size_align(size, 1).unwrap()
    }

    #[test]
    fn parts_are_aligned_and_apart() {
        let arena = Arena::new();
        let first = arena.take(bytes(3)).unwrap();
        let second = arena.take(Layout::new::<u64>()).unwrap();
        assert!(second.cast::<u64>().is_aligned());
        assert_eq!(second.addr() - first.addr(), 8);
    }

    #[test]
    fn the_last_part_grows_where_it_is_and_is_used_again() {
        let arena = Arena::new();
        // SAFETY: the parts are the arena's, with the layouts that they have.
        unsafe {
            let part = arena.alloc(bytes(10));
            assert_eq!(arena.realloc(part, bytes(10), 2000), part);
            arena.dealloc(part, bytes(2000));
            assert_eq!(arena.alloc(bytes(1)), part);
        }
    }

    #[test]
    fn another_part_moves_with_what_is_in_it() {
        let arena = Arena::new();
        // SAFETY: the parts are the arena's, with the layouts that they have, and are read within their sizes.
        unsafe {
            let part = arena.alloc(bytes(4));
            part.cast::<[u8; 4]>().write(*b"kept");
            arena.alloc(bytes(1));
            let moved = arena.realloc(part, bytes(4), SIZE);
            assert_eq!(arena.offset(moved), None);
            assert_eq!(moved.cast::<[u8; 4]>().read(), *b"kept");
            arena.dealloc(moved, bytes(SIZE));
        }
    }

    #[test]
    fn what_does_not_fit_is_the_libcs() {
        let arena = Arena::new();
        assert!(arena.take(bytes(SIZE)).is_some());
        assert!(arena.take(bytes(1)).is_none());
        assert!(Arena::new().take(bytes(SIZE + 1)).is_none());
    }
}
