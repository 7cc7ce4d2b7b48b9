//! What a mirror and its first seed tell each other of tokens, and how both are merged.
//!
//! The mirror reports who used which token there; the first seed answers with its file. Of the same bearer the
//! later use counts on either side, because a download by HTTP goes on to use its token; of two bearers the
//! first seed's word does.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::{
    MAX_TOKENS, REPEAT_FOR_S, TokenError, TokenRecord, Tokens, Use, Used, format, format_record,
    parse, parse_record, parse_used,
};
use crate::node_name::node_hex;

impl Tokens {
    /// For the primary: `HASH NODE WHEN`, a line for each token that was used up here, and for one that goes on
    /// beyond its time `token` with the whole record, which a primary of an earlier release passes over.
    pub fn report_used(&self) -> Result<Vec<u8>, String> {
        let records = self.load().map_err(|error| error.to_string())?;
        let mut text = String::new();
        for record in records.iter() {
            // What was taken back is the primary's to say.
            if let Some(used) = record.used.filter(|used| !used.is_taken_back()) {
                let node = node_hex(&used.by);
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{} {node} {}", record.hash, used.at_unix_s);
                if is_beyond_its_time(record) {
                    let _ = writeln!(text, "{WHOLE}{}", format_record(record));
                }
            }
        }
        Ok(text.into_bytes())
    }

    /// Takes a mirror's [`report`](Tokens::report_used), and returns the file for the mirror. Lines
    /// that are not understood are passed over: they concern the mirror's tokens, not ours. A token that goes on
    /// to admit its bearer there, and that was forgotten here because its time is over, is put down again: it
    /// is listed, and whoever revokes it by its number ends it.
    pub fn to_mirror(&self, report: &[u8], now_unix_s: u64) -> Result<Vec<u8>, TokenError> {
        let report = String::from_utf8_lossy(report);
        let used = report.lines().filter_map(|line| {
            let (hash, used) = line.split_once(' ')?;
            let used = parse_used(&used.replacen(' ', ":", 1))?;
            Some((blake3::Hash::from_hex(hash).ok()?, used))
        });
        let whole = report
            .lines()
            .filter_map(|line| parse_record(line.strip_prefix(WHOLE)?).ok())
            .filter(|record| record.used.is_some() && !record.is_spent(now_unix_s));
        let _lock = self.lock_soon()?;
        let mut records = self.load_to_change()?;
        let mut changed = false;
        for record in whole {
            let is_here = records.iter().any(|own| own.hash == record.hash);
            if !is_here && records.len() < MAX_TOKENS {
                records.push(record);
                changed = true;
            }
        }
        for (hash, used) in used {
            let named = |record: &&mut TokenRecord| record.hash == hash;
            let Some(record) = records.iter_mut().find(named) else {
                continue;
            };
            match record.used {
                None if record.usage == Use::OneTime => {
                    record.used = Some(used);
                    changed = true;
                }
                Some(own) if own.is_taken_back() => {}
                Some(own) if own.by != used.by => tracing::warn!(
                    "one-time token {} was used twice while the two seeds could not reach each \
                     other: by node {} here and by node {} at the mirror",
                    record.id,
                    own.by,
                    used.by
                ),
                Some(own) => changed |= goes_on(record, own, used, now_unix_s),
                None => {}
            }
        }
        if changed {
            self.prune(&mut records, now_unix_s);
            self.store(&records)?;
        }
        Ok(format(&records).into_bytes())
    }

    /// Takes over what its primary sent to a mirror. A one-time token that was used here, and of which the
    /// primary has not heard yet, stays used: between a report and the answer to it a machine may have
    /// been let in, and the token would admit a second one. One with which a download goes on beyond the time
    /// that the token was made for is kept although the primary has it no more; one that it has no more before
    /// that time, or has as used by nobody, was taken back.
    pub fn adopt(&self, text: &[u8], now_unix_s: u64) -> Result<(), TokenError> {
        let path = self.path();
        let text = String::from_utf8_lossy(text);
        let mut records = parse(&text).map_err(|(line, reason)| TokenError::Damaged {
            path: path.clone(),
            line,
            reason,
        })?;
        let _lock = self.state.lock()?;
        let own = self.load()?;
        let used: HashMap<[u8; 32], &TokenRecord> = own
            .iter()
            .filter(|record| record.used.is_some())
            .map(|record| (*record.hash.as_bytes(), record))
            .collect();
        for record in &mut records {
            let here = used.get(record.hash.as_bytes());
            if let Some(here) = here
                && record.usage == Use::OneTime
                && (record.used.is_none()
                    || record.used.map(|it| it.by) == here.used.map(|it| it.by))
            {
                record.used = [record.used, here.used]
                    .into_iter()
                    .flatten()
                    .max_by_key(|it| it.at_unix_s);
                record.expires_unix_s = record.expires_unix_s.max(here.expires_unix_s);
            }
        }
        let listed: HashSet<[u8; 32]> = records.iter().map(|it| *it.hash.as_bytes()).collect();
        let goes_on = own.iter().filter(|record| {
            !listed.contains(record.hash.as_bytes())
                && !record.is_spent(now_unix_s)
                && is_beyond_its_time(record)
        });
        records.extend(goes_on.cloned());
        if *own != records {
            self.store(&records)?;
        }
        Ok(())
    }
}

/// What the line of a whole record begins with.
const WHOLE: &str = "token ";

/// Whether a token is good only because its bearer goes on to use it ([`Tokens::hold`]).
fn is_beyond_its_time(record: &TokenRecord) -> bool {
    let lasts = |used: Used| used.at_unix_s.saturating_add(REPEAT_FOR_S);
    record
        .used
        .zip(record.expires_unix_s)
        .is_some_and(|(used, expires)| expires <= lasts(used))
}

/// The bearer has gone on to use a token at the mirror, as a download by HTTP does: it goes on to be good here
/// as well. Says whether that changes anything. A clock that is ahead there counts for nothing.
fn goes_on(record: &mut TokenRecord, own: Used, reported: Used, now_unix_s: u64) -> bool {
    let at_unix_s = reported.at_unix_s.min(now_unix_s);
    if at_unix_s <= own.at_unix_s {
        return false;
    }
    record.used = Some(Used { at_unix_s, ..own });
    let lasts = at_unix_s.saturating_add(REPEAT_FOR_S);
    record.expires_unix_s = record.expires_unix_s.map(|expires| expires.max(lasts));
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rootswarm_swarm::NodeId;

    use super::*;
    use crate::state::StateDir;
    use crate::token::{Held, TokenRefusal};

    const NOW: u64 = 1_000_000;
    const NODE: NodeId = NodeId([7; 32]);
    const OTHER: NodeId = NodeId([8; 32]);

    /// A download by HTTP begins at a mirror while its first seed is away, and goes on for minutes with a
    /// request every ten seconds, whenever the first seed can be asked meanwhile, and whatever changes
    /// there: the bearer is not turned away, also not at the first seed if that heard of it while the token
    /// lasted; and nobody else is let in.
    #[test]
    fn a_download_goes_on_at_a_mirror_whatever_the_first_seed_does() {
        // Whether the two can talk at that second.
        type Reachable = fn(u64) -> bool;
        let cases: [(&str, Reachable); 4] = [
            ("soon back", |at| at >= 10),
            ("away again", |at| at == 10 || at > 200),
            ("now and then", |at| at % 50 == 0),
            ("away again and again", |at| at / 90 % 2 == 1),
        ];
        for (case, is_reachable) in cases {
            for lifetime in [30, 600] {
                let places = [(); 2].map(|()| tempfile::tempdir().unwrap());
                let [primary, mirror] = places
                    .each_ref()
                    .map(|place| StateDir::open(place.path()).unwrap());
                let (primary, mirror) = (Tokens::new(primary), Tokens::of_mirror(mirror));
                let make = |at| {
                    let lifetime = Some(Duration::from_secs(lifetime));
                    primary.create(Use::OneTime, lifetime, "", at).unwrap()
                };
                let exchange = |at| {
                    let report = mirror.report_used().unwrap();
                    mirror
                        .adopt(&primary.to_mirror(&report, at).unwrap(), at)
                        .unwrap();
                };
                let token = make(NOW);
                exchange(NOW);
                let hold = |tokens: &Tokens, node, begins, at| {
                    tokens.hold(Some(&token), node, begins, at).unwrap()
                };
                let mut was_told = false;
                for second in (0..360).step_by(10) {
                    let at = NOW + second;
                    let there = second > 0 && is_reachable(second);
                    let held = hold(&mirror, NODE, !there, at);
                    assert_eq!(held, Ok(Held::Yes), "{case}, {lifetime}: second {second}");
                    if second % 40 == 20 {
                        // Whatever changes there forgets what is of no more use.
                        make(at);
                    }
                    if there {
                        exchange(at);
                        was_told |= second < lifetime;
                        let at_first = hold(&primary, NODE, false, at);
                        if was_told {
                            assert_eq!(at_first, Ok(Held::Yes), "{case}, {lifetime}: {second}");
                        }
                        for tokens in [&primary, &mirror] {
                            let other = tokens.consume(Some(&token), OTHER, at).unwrap();
                            let refused = Err(TokenRefusal::Invalid);
                            assert_eq!(other, refused, "{case}, {lifetime}: second {second}");
                        }
                    }
                }
                // A minute without a request ends it everywhere, and so does a word of the operator's.
                exchange(NOW + 500);
                for tokens in [&primary, &mirror] {
                    let ended = hold(tokens, NODE, true, NOW + 500);
                    assert_eq!(ended, Err(TokenRefusal::Invalid), "{case}, {lifetime}");
                }
            }
        }
    }

    /// What a mirror's clock says is believed up to this host's own.
    #[test]
    fn a_clock_that_is_ahead_makes_nothing_last() {
        let place = tempfile::tempdir().unwrap();
        let primary = Tokens::new(StateDir::open(place.path()).unwrap());
        let token = primary.create(Use::OneTime, None, "", NOW).unwrap();
        let hash = blake3::hash(token.as_bytes());
        assert!(primary.consume(Some(&token), NODE, NOW).unwrap().is_ok());
        let line = format!("{hash} {} {}\n", node_hex(&NODE), NOW + 1_000_000);
        primary.to_mirror(line.as_bytes(), NOW + 10).unwrap();
        let admits = |at| primary.consume(Some(&token), NODE, at).unwrap().is_ok();
        assert!(admits(NOW + 69));
        assert!(!admits(NOW + 70));
    }
}
