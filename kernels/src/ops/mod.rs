//! The elementwise and row-wise parts of a transformer layer.

pub mod act;
pub mod norm;
pub mod rope;
pub mod softmax;
