//! Model families: one file each, readable in one sitting.

pub mod llama;
