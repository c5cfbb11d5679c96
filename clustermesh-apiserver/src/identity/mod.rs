//! Who a pod is: labels, and the number they have in this cluster.

mod allocator;
mod labels;

pub use allocator::{Allocator, Exhausted};
pub use labels::identity_labels;
