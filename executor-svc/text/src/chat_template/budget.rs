//! What a rendering may cost: time, memory and stack, for templates and messages of any intent.

use std::thread;

use super::ChatMessage;
use crate::TextError;

/// Fuel of any rendering. A unit is an instruction or 64 bytes of what the template makes.
const BASE_FUEL: u64 = 100_000;
/// Fuel for a message: several times the instructions that the longest templates run for one.
const FUEL_PER_MESSAGE: u64 = 1_000;
/// One unit of fuel for so many bytes of the messages: enough for a dozen copies of the text.
const BYTES_PER_FUEL: u64 = 4;
/// No rendering takes more: under a second, and a quarter of a gigabyte.
const MAX_FUEL: u64 = 4_000_000;

/// A template can nest a list in a list with one unit of fuel, and values are printed and dropped recursively. The
/// stack is as deep as the fuel allows, so that no template overflows it, which would abort the process. It is address
/// space: what a rendering does not reach takes no memory.
const STACK_BYTES_PER_FUEL: u64 = 1024;

/// The limits of one rendering.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    fuel: u64,
}

impl Budget {
    /// The limits that fit these messages.
    pub(super) fn of(messages: &[ChatMessage]) -> Self {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let fuel = BASE_FUEL + messages.len() as u64 * FUEL_PER_MESSAGE + bytes as u64 / BYTES_PER_FUEL;
        Self { fuel: fuel.min(MAX_FUEL) }
    }

    pub(super) fn fuel(self) -> u64 {
        self.fuel
    }

    /// Runs a rendering on a stack of its own.
    pub(super) fn run<T: Send>(
        self,
        render: impl FnOnce() -> Result<T, TextError> + Send,
    ) -> Result<T, TextError> {
        let failed = |message: String| TextError::TemplateThread { message };
        let stack_size = usize::try_from(self.fuel * STACK_BYTES_PER_FUEL)
            .map_err(|_| failed("its stack does not fit the address space".to_owned()))?;
        thread::scope(|scope| {
            thread::Builder::new()
                .name("chat-template".to_owned())
                .stack_size(stack_size)
                .spawn_scoped(scope, render)
                .map_err(|error| failed(error.to_string()))?
                .join()
                .unwrap_or_else(|_| Err(failed("it panicked".to_owned())))
        })
    }
}
