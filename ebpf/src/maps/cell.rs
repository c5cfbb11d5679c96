//! The ABI's types as aya wants them.

use hawser_ebpf_abi::Plain;

/// A [`Plain`] value behind aya's `Pod`, which neither crate may implement for the other.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<T: Plain>(pub(super) T);

// SAFETY: transparent over `T`, and `Plain` promises what `Pod` asks: no padding, no invalid bit patterns, no pointers.
unsafe impl<T: Plain> aya::Pod for Cell<T> {}
