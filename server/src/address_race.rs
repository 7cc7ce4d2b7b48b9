//! Which of a host's addresses answers: all of them are tried, each a little after the one before it
//! (RFC 8305).
//!
//! What is tried there, and what its failures mean, is the caller's.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// How long an address has to itself before the next one is tried beside it: a handshake on a LAN takes
/// a few milliseconds, and a first packet that was lost is sent again within this time.
const HEAD_START: Duration = Duration::from_millis(300);

/// Addresses of one name that are tried; more are a round-robin of something else.
const ADDRESSES_MAX: usize = 8;

/// One family after the other, in the resolver's order otherwise, so that a family that leads nowhere
/// costs one head start; each address once.
#[must_use]
pub fn interleave(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut once = Vec::new();
    for address in found {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    let first_is_v6 = once.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = once
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let longest = first.len().max(second.len());
    let mut addresses: Vec<SocketAddr> = (0..longest)
        .flat_map(|place| [first.get(place), second.get(place)])
        .flatten()
        .copied()
        .collect();
    addresses.truncate(ADDRESSES_MAX);
    addresses
}

/// What `dial` comes to at the first address that answers.
///
/// # Errors
/// When none does: what each of them came to, in the order of `addresses`.
pub async fn first_that_answers<T, E, F>(
    addresses: &[SocketAddr],
    dial: impl Fn(SocketAddr) -> F,
) -> Result<T, Vec<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = addresses.iter().copied().enumerate();
    let mut dials = JoinSet::new();
    let mut failed: Vec<(usize, E)> = Vec::new();
    let mut next_at = Instant::now();
    let mut more = true;
    loop {
        tokio::select! {
            biased;
            Some(ended) = dials.join_next() => match ended {
                // The others end with the set.
                Ok((_, Ok(answer))) => return Ok(answer),
                Ok((place, Err(error))) => {
                    failed.push((place, error));
                    next_at = Instant::now();
                }
                // A dial is cancelled only by the end of this function; a panic is a bug.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = sleep_until(next_at), if more => match waiting.next() {
                Some((place, address)) => {
                    let dialing = dial(address);
                    dials.spawn(async move { (place, dialing.await) });
                    next_at = Instant::now() + HEAD_START;
                }
                None => more = false,
            },
            else => {
                failed.sort_by_key(|(place, _)| *place);
                return Err(failed.into_iter().map(|(_, error)| error).collect());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        for (found, order) in [
            (&["10.0.0.1:1"][..], &["10.0.0.1:1"][..]),
            (
                &["[fd00::1]:1", "[fd00::2]:1", "10.0.0.1:1", "10.0.0.2:1"],
                &["[fd00::1]:1", "10.0.0.1:1", "[fd00::2]:1", "10.0.0.2:1"],
            ),
            (
                &["10.0.0.1:1", "10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"],
                &["10.0.0.1:1", "[fd00::1]:1", "10.0.0.2:1"],
            ),
            (&[], &[]),
        ] {
            assert_eq!(interleave(addresses(found)), addresses(order));
        }
        let many = (1..=99).map(|host| SocketAddr::from(([10, 0, 0, host], 1)));
        assert_eq!(interleave(many).len(), ADDRESSES_MAX);
    }

    /// When each address answers (or fails, or never does), who wins, and when.
    #[tokio::test(start_paused = true)]
    async fn the_first_that_answers_wins() {
        const NEVER: u64 = 1_000_000;
        for (milliseconds, winner, after) in [
            // Positive: it answers then; negative: it fails then.
            (&[1_i64][..], Some(0), 1),
            (&[NEVER as i64, 1], Some(1), 301),
            (&[NEVER as i64, NEVER as i64, 5], Some(2), 605),
            (&[-1, -1, 5], Some(2), 7),
            (&[400, 200], Some(0), 400),
            (&[-1, -4_000, -2], None, 4_001),
            (&[-1], None, 1),
            (&[], None, 0),
        ] {
            let list: Vec<SocketAddr> = (0..milliseconds.len())
                .map(|host| SocketAddr::from(([10, 0, 0, host as u8], 1)))
                .collect();
            let begin = Instant::now();
            let outcome = first_that_answers(&list, |address| {
                let place = list.iter().position(|it| *it == address).unwrap();
                let milliseconds = milliseconds[place];
                async move {
                    let wait = Duration::from_millis(milliseconds.unsigned_abs());
                    tokio::time::sleep(wait).await;
                    match milliseconds > 0 {
                        true => Ok(place),
                        false => Err(place),
                    }
                }
            })
            .await;
            let expected = winner.ok_or_else(|| (0..milliseconds.len()).collect::<Vec<_>>());
            assert_eq!(outcome, expected, "{milliseconds:?}");
            let took = begin.elapsed().as_millis();
            assert!(took.abs_diff(after) <= 3, "{milliseconds:?}: {took} ms");
        }
    }
}
