//! Launches of kernels, checked against the kernel and the device before they are enqueued.

use crate::device::Inner;
use crate::driver::{self, Kernel, Properties, Values};
use crate::error::Error;
use crate::memory::Access;
use crate::record::Counts;
use std::sync::Arc;

/// A value for a kernel's parameter.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// The address of a view.
    At(Access<'a>),
    /// No address.
    Null,
    /// 4 bytes.
    I32(i32),
    /// 4 bytes.
    U32(u32),
    /// 4 bytes.
    F32(f32),
    /// 8 bytes.
    U64(u64),
    /// A struct by value, as it lies in memory.
    Bytes(&'a [u8]),
}

impl<'a> From<Access<'a>> for Argument<'a> {
    fn from(access: Access<'a>) -> Self {
        Self::At(access)
    }
}

/// A kernel to run.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// As in its `.cu` file.
    pub kernel: &'a str,
    /// Blocks, each at least 1, up to 2^31 - 1, 65535 and 65535.
    pub grid: [u32; 3],
    /// Threads of a block, one-dimensional.
    pub threads: u32,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// As the kernel takes them.
    pub arguments: &'a [Argument<'a>],
    /// Memory that it reaches by addresses in device memory, not by an argument.
    pub through_tables: &'a [Access<'a>],
    /// What it costs, for records.
    pub counts: Counts,
}

impl Launch<'_> {
    /// Holds the launch against the kernel and the device.
    pub(crate) fn checked(&self, kernel: Arc<Kernel>, device: &Arc<Inner>) -> Result<driver::Launch, Error> {
        self.check_shape(&kernel, device.driver.properties())?;
        if self.arguments.len() != kernel.parameters.len() {
            let limit = format!("{}, as many as its parameters", kernel.parameters.len());
            return Err(Error::value(self.kernel, "arguments", self.arguments.len(), limit));
        }
        let mut values = Values::default();
        for (index, (argument, parameter)) in self.arguments.iter().zip(&kernel.parameters).enumerate() {
            let bytes = argument.bytes();
            let is_pointer = matches!(argument, Argument::At(_) | Argument::Null);
            let is_right_kind = parameter.is_pointer.is_none_or(|wanted| wanted == is_pointer);
            if bytes.len() != parameter.bytes || !is_right_kind {
                let kind = |is_pointer| if is_pointer { "an address" } else { "a value" };
                let limit = match parameter.is_pointer {
                    Some(is_pointer) => format!("{} of {} bytes", kind(is_pointer), parameter.bytes),
                    None => format!("{} bytes", parameter.bytes),
                };
                let value = format!("number {index}, {} of {} bytes", kind(is_pointer), bytes.len());
                return Err(Error::value(self.kernel, "argument", value, limit));
            }
            values.push(&bytes);
        }
        let accesses = || self.accesses();
        if let Some(foreign) = accesses().find(|access| !access.view.buffer.is_of(device)) {
            let value = format!("{:#x} of another device", foreign.view.address());
            return Err(Error::value(self.kernel, "view", value, "of this device"));
        }
        Ok(driver::Launch {
            kernel,
            grid: self.grid,
            threads: self.threads,
            shared_bytes: self.shared_bytes,
            values,
            touches: accesses().map(|access| access.touch()).collect(),
        })
    }

    pub(crate) fn accesses(&self) -> impl Iterator<Item = &Access<'_>> {
        let of_arguments = self.arguments.iter().filter_map(|argument| match argument {
            Argument::At(access) => Some(access),
            _ => None,
        });
        of_arguments.chain(self.through_tables)
    }

    fn check_shape(&self, kernel: &Kernel, device: &Properties) -> Result<(), Error> {
        let fields = ["grid.x", "grid.y", "grid.z"];
        for ((field, value), most) in fields.into_iter().zip(self.grid).zip([i32::MAX as u32, 65_535, 65_535]) {
            if value == 0 || value > most {
                return Err(Error::value(self.kernel, field, value, format!("1 to {most}")));
            }
        }
        let threads_max = kernel.threads_max.min(device.threads_max);
        if self.threads == 0 || self.threads > threads_max {
            return Err(Error::value(self.kernel, "threads", self.threads, format!("1 to {threads_max}")));
        }
        let shared_max = device.shared_bytes_max.saturating_sub(kernel.static_shared_bytes);
        if self.shared_bytes > shared_max {
            return Err(Error::value(self.kernel, "shared_bytes", self.shared_bytes, format!("up to {shared_max}")));
        }
        Ok(())
    }
}

impl Argument<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::At(access) => access.view.address().to_ne_bytes().to_vec(),
            Self::Null => 0u64.to_ne_bytes().to_vec(),
            Self::I32(value) => value.to_ne_bytes().to_vec(),
            Self::U32(value) => value.to_ne_bytes().to_vec(),
            Self::F32(value) => value.to_ne_bytes().to_vec(),
            Self::U64(value) => value.to_ne_bytes().to_vec(),
            Self::Bytes(value) => value.to_vec(),
        }
    }
}
