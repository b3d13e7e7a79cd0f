//! A thread that works beside the clients until it is told to stop.

use std::{io, thread};

use tokio::sync::watch;

/// Ends its thread when it is dropped, and waits for it.
pub(super) struct Background {
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Background {
    /// Starts a thread of this name. `body` ends soon after the receiver says true.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(
        name: &str,
        body: impl FnOnce(watch::Receiver<bool>) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || body(stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
