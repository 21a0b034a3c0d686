//! A thread that owns what may only be used on one thread.
//!
//! TensorRT's engines and contexts, and the CUDA context they run in, stay on the thread that made them. Others send it
//! work and wait for the answer. The queue is bounded: who finds it full waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::DeviceError;

/// Work that may wait. Every caller waits for its own, so that more than a few callers would have to come at once.
const QUEUE: usize = 32;

type Work<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A thread that owns an `S`, which never leaves it. Dropping this drops the `S` there, after all work that was sent.
pub(crate) struct Owner<S> {
    queue: Option<SyncSender<Work<S>>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: 'static> Owner<S> {
    /// Starts a thread that makes its `S`.
    ///
    /// # Errors
    /// When there can be no thread, as `make`, or when it panics.
    pub(crate) fn start(
        name: &str,
        make: impl FnOnce() -> Result<S, DeviceError> + Send + 'static,
    ) -> Result<Self, DeviceError> {
        let (queue, work) = sync_channel(QUEUE);
        let (started, start) = sync_channel(1);
        let run = move || match guard(make).and_then(|made| made) {
            Ok(owned) => {
                // The caller waits for this.
                let _ = started.send(Ok(()));
                serve(owned, &work);
            }
            Err(error) => drop(started.send(Err(error))),
        };
        let thread = Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(|error| DeviceError::Thread(error.to_string()))?;
        let owner = Self { queue: Some(queue), thread: Some(thread) };
        start.recv().map_err(|_| gone())??;
        Ok(owner)
    }

    /// Does something with the `S`, and waits for it.
    ///
    /// # Errors
    /// [`DeviceError::Thread`] when `work` panics. What it had begun stays as it was then.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, DeviceError> {
        let (done, answer) = sync_channel(1);
        let work: Work<S> = Box::new(move |owned| {
            // A caller that is gone needs no answer.
            let _ = done.send(guard(|| work(owned)));
        });
        self.queue.as_ref().ok_or_else(gone)?.send(work).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl<S> Drop for Owner<S> {
    fn drop(&mut self) {
        // The thread ends when the queue does.
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // It catches panics of its own; one while dropping the `S` has nobody to tell.
            let _ = thread.join();
        }
    }
}

fn serve<S>(mut owned: S, work: &Receiver<Work<S>>) {
    for work in work {
        work(&mut owned);
    }
}

/// Turns a panic into an error.
fn guard<T>(work: impl FnOnce() -> T) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        DeviceError::Thread(format!("panicked: {}", text.unwrap_or("without a message")))
    })
}

fn gone() -> DeviceError {
    DeviceError::Thread("it has ended".to_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::thread::{ThreadId, current};

    use parking_lot::Mutex;

    use super::*;

    /// Not `Send`; tells when and where it is dropped.
    struct Owned {
        number: Rc<Cell<u32>>,
        log: Arc<Mutex<Vec<(&'static str, ThreadId)>>>,
    }

    impl Drop for Owned {
        fn drop(&mut self) {
            self.log.lock().push(("dropped", current().id()));
        }
    }

    fn start(log: &Arc<Mutex<Vec<(&'static str, ThreadId)>>>) -> Owner<Owned> {
        let log = Arc::clone(log);
        Owner::start("test", move || Ok(Owned { number: Rc::new(Cell::new(1)), log })).unwrap()
    }

    #[test]
    fn what_is_owned_is_used_and_dropped_on_its_own_thread() {
        let log = Arc::default();
        let owner = start(&log);
        let (number, thread) = owner.call(|owned| (owned.number.get(), current().id())).unwrap();
        assert_eq!(number, 1);
        assert_ne!(thread, current().id());
        assert!(log.lock().is_empty());
        drop(owner);
        assert_eq!(*log.lock(), [("dropped", thread)]);
    }

    #[test]
    fn callers_on_many_threads_get_their_own_answers() {
        let log = Arc::default();
        let owner = start(&log);
        std::thread::scope(|scope| {
            for caller in 0..8_u32 {
                let owner = &owner;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let answer = owner.call(move |owned| {
                            owned.number.set(owned.number.get() + 1);
                            caller
                        });
                        assert_eq!(answer.unwrap(), caller);
                    }
                });
            }
        });
        assert_eq!(owner.call(|owned| owned.number.get()).unwrap(), 401);
    }

    #[test]
    fn a_panic_is_an_error_and_the_thread_goes_on() {
        let log = Arc::default();
        let owner = start(&log);
        let error = owner.call(|_| panic!("layer {}", 7)).unwrap_err();
        assert_eq!(error.to_string(), "the device's thread: panicked: layer 7");
        assert_eq!(owner.call(|owned| owned.number.get()).unwrap(), 1);
    }

    #[test]
    fn failing_to_start_is_the_callers_error() {
        let refused = Owner::<u8>::start("test", || Err(DeviceError::Engine("no device".to_owned())));
        assert_eq!(refused.err().unwrap().to_string(), "no device");
        let panicked = Owner::<u8>::start("test", || panic!("no library"));
        assert_eq!(panicked.err().unwrap().to_string(), "the device's thread: panicked: no library");
    }
}
