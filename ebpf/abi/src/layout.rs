//! Plain old data: what may be copied between kernel and user space byte by byte.

/// Types whose every byte is a field's byte: no padding, no invalid bit patterns, no pointers.
///
/// # Safety
/// `repr(C)` or `repr(transparent)`, only integers and arrays of integers inside, no padding.
pub unsafe trait Plain: Copy + 'static {
    /// The value as the kernel sees it.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: `Self` has no padding (the trait's contract), so all of its bytes are initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

macro_rules! plain_int {
    ($($int:ty),*) => { $(
        // SAFETY: an integer is all value bits.
        unsafe impl Plain for $int {}
    )* };
}
plain_int!(u8, u16, u32, u64);

// SAFETY: an array of bytes has no padding and no invalid values.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// Declares a struct of [`Plain`] fields and proves at compile time that it has exactly the stated size and no padding.
macro_rules! plain {
    ($(#[$meta:meta])* pub struct $name:ident: $size:literal {
        $($(#[$field_meta:meta])* pub $field:ident: $ty:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }

        const _: () = {
            const fn all_plain<T: $crate::Plain>() -> usize { size_of::<T>() }
            assert!(size_of::<$name>() == $size, "the size is part of the ABI");
            assert!(0 $(+ all_plain::<$ty>())* == $size, "padding is not allowed in the ABI");
            assert!(align_of::<$name>() <= 8);
        };
        // SAFETY: repr(C), every field is Plain, and the sum of the fields' sizes is the struct's size: no padding.
        unsafe impl $crate::Plain for $name {}
    };
}
pub(crate) use plain;
