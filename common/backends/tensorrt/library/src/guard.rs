//! Panics in callbacks. One that unwinds into C++ aborts the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;

/// Keeps the first panic of a set of callbacks, for the code that made the call to find.
#[derive(Debug, Default)]
pub(crate) struct PanicSlot(Mutex<Option<String>>);

impl PanicSlot {
    /// Runs a callback. If it panics, keeps the message and returns `fallback`.
    pub(crate) fn run<R>(&self, fallback: R, callback: impl FnOnce() -> R) -> R {
        // What the callback was changing may be half changed: its owner learns of the panic before it looks again.
        match catch_unwind(AssertUnwindSafe(callback)) {
            Ok(result) => result,
            Err(panic) => {
                self.0.lock().get_or_insert_with(|| message(panic.as_ref()));
                fallback
            }
        }
    }

    /// The message of the first panic, if there was one; the slot is empty again.
    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().take()
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_is_kept_and_the_fallback_returned() {
        let slot = PanicSlot::default();
        assert_eq!(slot.run(0, || 1), 1);
        assert_eq!(slot.take(), None);
        assert_eq!(slot.run(0, || panic!("first")), 0);
        assert_eq!(slot.run(0, || panic!("second {}", 2)), 0);
        assert_eq!(slot.take().as_deref(), Some("first"));
        assert_eq!(slot.take(), None);
    }
}
