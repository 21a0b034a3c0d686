//! Between fp32 and the stored types.

use std::mem::MaybeUninit;

use crate::isa::{Isa, Kernel};
use crate::simd::{Element, MAX_LANES, Simd};
use crate::{Elements, ElementsMut};

struct Load<'a, E>(&'a [E], &'a mut [f32]);

impl<E: Element> Kernel for Load<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(from, to) = self;
        assert_eq!(from.len(), to.len(), "as many numbers are converted as there is room for");
        let len = to.len();
        let (from, to) = (from.as_ptr(), to.as_mut_ptr());
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: i is below the length of both; a whole vector is touched only where as many elements follow.
            unsafe {
                if n >= S::LANES {
                    s.store(to.add(i), E::load(s, from.add(i)));
                } else {
                    s.store_partial(to.add(i), n, E::load_partial(s, from.add(i), n));
                }
            }
        }
    }
}

struct Store<'a, E>(&'a [f32], &'a mut [E]);

impl<E: Element> Kernel for Store<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(from, to) = self;
        assert_eq!(from.len(), to.len(), "as many numbers are converted as there is room for");
        let len = to.len();
        let (from, to) = (from.as_ptr(), to.as_mut_ptr());
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: i is below the length of both; a whole vector is touched only where as many elements follow,
            // or in an array that holds a vector of any instruction set, of which n elements are copied.
            unsafe {
                if n >= S::LANES {
                    E::store(s, to.add(i), s.load(from.add(i)));
                } else {
                    let mut lanes = [const { MaybeUninit::<E>::uninit() }; MAX_LANES];
                    let start = lanes.as_mut_ptr().cast::<E>();
                    E::store(s, start, s.load_partial(from.add(i), n));
                    std::ptr::copy_nonoverlapping(start, to.add(i), n);
                }
            }
        }
    }
}

/// Converts to fp32, exactly: an embedding row, a cache row, ….
///
/// # Panics
/// If the lengths differ.
pub fn load(isa: Isa, from: Elements<'_>, to: &mut [f32]) {
    match from {
        Elements::F32(from) => to.copy_from_slice(from),
        Elements::F16(from) => isa.dispatch(Load(from, to)),
        Elements::Bf16(from) => isa.dispatch(Load(from, to)),
    }
}

/// Converts from fp32, rounding to nearest, ties to even; too large magnitudes become infinite.
///
/// # Panics
/// If the lengths differ.
pub fn store(isa: Isa, from: &[f32], to: ElementsMut<'_>) {
    match to {
        ElementsMut::F32(to) => to.copy_from_slice(from),
        ElementsMut::F16(to) => isa.dispatch(Store(from, to)),
        ElementsMut::Bf16(to) => isa.dispatch(Store(from, to)),
    }
}

/// Writes the keys or values of one token into a cache: head `h`'s `from[h * dim..][..dim]` becomes the elements from
/// `h * head_stride + row * row_stride` on, as in [`KvView`](crate::KvView).
///
/// # Panics
/// If a row is not within the cache, or `from` is not whole rows.
pub fn store_kv(
    isa: Isa,
    from: &[f32],
    dim: usize,
    mut cache: ElementsMut<'_>,
    head_stride: usize,
    row_stride: usize,
    row: usize,
) {
    assert_eq!(from.len() % dim.max(1), 0, "the rows of a token are whole");
    for (head, from) in from.chunks_exact(dim.max(1)).enumerate() {
        let start = head * head_stride + row * row_stride;
        store(isa, from, cache.slice(start..start + dim));
    }
}
