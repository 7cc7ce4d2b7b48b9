//! Work that may wait for a disk or for a lock, kept away from the reactor.
//!
//! A reactor thread that waits is a server that does not answer: to nobody, whatever they asked. So what
//! may wait is done by threads of the runtime's blocking pool, never by more of them than [`Blocking::new`]
//! says, and whoever asked is told "not now" when it takes too long. The work itself goes on to its end
//! then: it has to bound its own waits, or it keeps its thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// A few threads for one kind of work.
#[derive(Clone, Debug)]
pub struct Blocking {
    threads: Arc<Semaphore>,
    patience: Duration,
}

impl Blocking {
    /// At most `threads` at a time, and who asks waits no longer than `patience` altogether.
    #[must_use]
    pub fn new(threads: usize, patience: Duration) -> Blocking {
        Blocking {
            threads: Arc::new(Semaphore::new(threads)),
            patience,
        }
    }

    /// Does `work`, or says `None`: all threads were taken for too long, in which case it was not begun,
    /// or it took too long itself (or panicked).
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let threads = self.threads.clone();
        let done = async {
            let thread = threads.acquire_owned().await.ok()?;
            let work = move || {
                let _thread = thread;
                work()
            };
            spawn_blocking(work).await.ok()
        };
        timeout(self.patience, done).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn who_waits_too_long_is_told_and_nothing_is_begun_for_him() {
        for threads in [1, 2, 5] {
            let blocking = Blocking::new(threads, SHORT);
            let mut stuck = Vec::new();
            for _ in 0..threads {
                let (release, wait) = channel::<()>();
                let blocking = blocking.clone();
                let asked = tokio::spawn(async move { blocking.run(move || wait.recv()).await });
                stuck.push((release, asked));
            }
            let (begun, was_begun) = channel();
            // It is behind the others: they were spawned first.
            tokio::task::yield_now().await;
            assert_eq!(blocking.run(move || begun.send(())).await, None);
            assert!(was_begun.recv().is_err(), "dropped, not begun");
            for (release, asked) in stuck {
                assert_eq!(asked.await.unwrap(), None, "it took too long itself");
                drop(release);
            }
            // The threads are free again.
            let again = async { while blocking.run(|| 7).await != Some(7) {} };
            timeout(Duration::from_secs(20), again).await.unwrap();
        }
    }
}
