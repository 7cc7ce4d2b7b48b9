//! Tokens that the operator takes back, and those with which a download by HTTP goes on.
//!
//! One that was used is not simply forgotten: a mirror may go on with it beyond the time it was made for, and
//! to that one a token that is missing here may as well be one that was forgotten with time. So it is put
//! down as used by nobody, which releases before this one read like any other use.

use rootswarm_swarm::NodeId;

use super::{TokenError, TokenRecord, Tokens, Used};

/// No key has this id.
const NOBODY: NodeId = NodeId([0; 32]);

/// How long that is remembered, unless there are too many: a mirror that is away for longer has its own word.
pub(super) const REMEMBERED_FOR_S: u64 = 24 * 3_600;

impl Used {
    /// Whether the token was used and then taken back.
    pub(super) fn is_taken_back(&self) -> bool {
        self.by == NOBODY
    }
}

fn take_back(record: &mut TokenRecord, now_unix_s: u64) {
    record.used = Some(Used {
        by: NOBODY,
        at_unix_s: now_unix_s,
    });
}

impl Tokens {
    /// Takes a token out by its number. The whole token is taken too: that is what the admin has.
    pub fn revoke(&self, id: &str, now_unix_s: u64) -> Result<(), TokenError> {
        let id = id.split('-').next().unwrap_or(id);
        match self.revoke_each(&[id.to_owned()], now_unix_s)? {
            0 => Err(TokenError::Unknown(id.to_owned())),
            _ => Ok(()),
        }
    }

    /// Takes out those with these numbers, and returns how many there were.
    pub(crate) fn revoke_each(&self, ids: &[String], now_unix_s: u64) -> Result<usize, TokenError> {
        let _lock = self.state.lock()?;
        let mut records = self.load_to_change()?;
        let named = |record: &TokenRecord| {
            ids.contains(&record.id) && !record.used.is_some_and(|used| used.is_taken_back())
        };
        let found = records.iter().filter(|record| named(record)).count();
        if found > 0 {
            records.retain(|record| !named(record) || record.used.is_some());
            for record in records.iter_mut().filter(|record| named(record)) {
                take_back(record, now_unix_s);
            }
            self.store(&records)?;
        }
        Ok(found)
    }

    /// Whether they are kept for a first seed.
    pub(crate) fn are_a_mirrors(&self) -> bool {
        self.keeps_used
    }

    /// Ends what was used until `until_unix_s`: no download goes on with it. What was used in the future of
    /// `now_unix_s` was used while a clock was ahead, so before.
    pub fn end_used(&self, until_unix_s: u64, now_unix_s: u64) -> Result<(), TokenError> {
        let _lock = self.state.lock()?;
        let mut records = self.load_to_change()?;
        let mut changed = false;
        for record in &mut records {
            let Some(used) = record.used else { continue };
            let was_before = used.at_unix_s <= until_unix_s || used.at_unix_s > now_unix_s;
            if !used.is_taken_back() && was_before {
                take_back(record, until_unix_s);
                changed = true;
            }
        }
        match changed {
            true => self.store(&records),
            false => Ok(()),
        }
    }

    /// The tokens that still admit somebody: [`list`](Tokens::list), and those that go on to admit the node or
    /// the download that has used them.
    pub fn good(&self, now_unix_s: u64) -> Result<Vec<TokenRecord>, TokenError> {
        let records = self.load()?;
        let good = records.iter().filter(|record| !record.is_spent(now_unix_s));
        Ok(good.cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;
    use crate::token::Use;

    const NOW: u64 = 1_000_000;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        (dir, Tokens::new(state))
    }

    /// Everything that was used is over, also what was used while the clock was ahead; what was not used is not.
    #[test]
    fn the_end_of_what_was_used_is_the_end_of_what_was_used_in_the_future() {
        for (used_at, until, is_over) in [
            (NOW, NOW, true),
            (NOW - 1, NOW, true),
            (NOW + 3_600, NOW, true),
            (NOW + 365 * 86_400, NOW, true),
            // At a mirror, which looks a moment later.
            (NOW, NOW - 1, false),
            (NOW + 1, NOW - 1, true),
        ] {
            let (_dir, tokens) = tokens();
            let token = tokens.create(Use::OneTime, None, "", NOW - 60).unwrap();
            let unused = tokens.create(Use::OneTime, None, "", NOW - 60).unwrap();
            let node = NodeId([7; 32]);
            tokens
                .consume(Some(&token), node, used_at)
                .unwrap()
                .unwrap();
            tokens.end_used(until, NOW).unwrap();
            let found = tokens.check(Some(&token), Some(node), NOW).unwrap();
            assert_eq!(found.is_err(), is_over, "{used_at} {until}");
            assert!(
                tokens
                    .check(Some(&unused), Some(node), NOW)
                    .unwrap()
                    .is_ok()
            );
        }
    }
}
