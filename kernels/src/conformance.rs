//! One suite that every implementation of [`Kernels`](crate::Kernels) must pass.
