//! Who uses tokens up: joins, and downloads by HTTP; many of them are written down at once.
//!
//! That a token is used is on the disk before its bearer hears of it, and to get it there takes from a tenth
//! of a millisecond to some thirty: a hall that is switched on would stand in a queue for as many syncs as it
//! has machines. So whoever comes while somebody writes waits for the end of that, and the next one writes
//! down all who came meanwhile (group commit: DeWitt et al., "Implementation techniques for main memory
//! database systems", SIGMOD 1984, section 5.2).

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rootswarm_swarm::NodeId;

use super::{
    Held, RENEW_AFTER_S, REPEAT_FOR_S, TokenError, TokenRecord, TokenRefusal, Tokens, Use, Used,
    find,
};

type Answer = Result<Result<Held, TokenRefusal>, TokenError>;

/// Those who wait to be written down, and the turn to write.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Vec<Arc<Asked>>>,
    turn: Mutex<()>,
}

/// Somebody who shows a one-time token.
#[derive(Debug)]
struct Asked {
    token: String,
    bearer: NodeId,
    /// Of a download by HTTP: whether it may begin here.
    download: Option<bool>,
    /// As of when the token must be good.
    as_of_unix_s: u64,
    now_unix_s: u64,
    answer: Mutex<Option<Answer>>,
}

/// A panic while one of these was held leaves what was there, which is as good as before.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asked {
    /// What becomes of it; and whether `records` had to be changed for it.
    fn mark(&self, records: &mut [TokenRecord]) -> (Result<Held, TokenRefusal>, bool) {
        let Some(index) = find(records, &self.token, Some(self.bearer), self.as_of_unix_s) else {
            return (Err(TokenRefusal::Invalid), false);
        };
        let record = &mut records[index];
        if self.is_done(record) {
            return (Ok(Held::Yes), false);
        }
        if self.download == Some(false) && record.used.is_none() {
            return (Ok(Held::Elsewhere), false);
        }
        record.used = Some(Used {
            by: self.bearer,
            at_unix_s: self.now_unix_s,
        });
        if self.download.is_some() {
            let lasts = self.now_unix_s.saturating_add(REPEAT_FOR_S);
            record.expires_unix_s = record.expires_unix_s.map(|expires| expires.max(lasts));
        }
        (Ok(Held::Yes), true)
    }

    /// Whether there is nothing to write down about this token, which admits the bearer.
    fn is_done(&self, record: &TokenRecord) -> bool {
        let is_fresh = |used: Used| used.at_unix_s.saturating_add(RENEW_AFTER_S) > self.now_unix_s;
        match (record.usage, self.download) {
            (Use::Reusable, _) => true,
            (Use::OneTime, None) => record.used.is_some(),
            (Use::OneTime, Some(_)) => record.used.is_some_and(is_fresh),
        }
    }
}

impl Tokens {
    /// Admits `bearer`, and marks a one-time token as used by it first: of two nodes that show the
    /// same one at the same time, one is admitted.
    pub fn consume(
        &self,
        token: Option<&str>,
        bearer: NodeId,
        now_unix_s: u64,
    ) -> Result<Result<(), TokenRefusal>, TokenError> {
        let now = now_unix_s;
        Ok(self.take(token, bearer, None, now, now)?.map(drop))
    }

    /// Admits `bearer` to a download of many requests, for each of them: a one-time token is marked as used
    /// by it first, and goes on to admit it, and nobody else, until nothing was asked with it for
    /// [`REPEAT_FOR_S`]. The download may go on when the token would have expired meanwhile. `begins` says
    /// whether one that is unused may be taken here.
    pub fn hold(
        &self,
        token: Option<&str>,
        bearer: NodeId,
        begins: bool,
        now_unix_s: u64,
    ) -> Result<Result<Held, TokenRefusal>, TokenError> {
        self.take(token, bearer, Some(begins), now_unix_s, now_unix_s)
    }

    /// The same for an answer that is under way, to which the token admitted at `last_unix_s`: a host that
    /// was asleep since, or whose clock was moved on, has seen nothing that ends it. What was taken back
    /// meanwhile does.
    pub fn go_on(
        &self,
        token: Option<&str>,
        bearer: NodeId,
        last_unix_s: u64,
        now_unix_s: u64,
    ) -> Result<Result<Held, TokenRefusal>, TokenError> {
        let as_of = last_unix_s.min(now_unix_s);
        self.take(token, bearer, Some(false), as_of, now_unix_s)
    }

    /// When a token that admits any number of times ends to; `None` if it does not admit, or has no end, or
    /// admits once.
    pub fn reusable_until(
        &self,
        token: Option<&str>,
        now_unix_s: u64,
    ) -> Result<Option<u64>, TokenError> {
        let records = self.load()?;
        let found = token.and_then(|token| find(&records, token, None, now_unix_s));
        Ok(found.and_then(|index| match records[index].usage {
            Use::Reusable => records[index].expires_unix_s,
            Use::OneTime => None,
        }))
    }

    fn take(
        &self,
        token: Option<&str>,
        bearer: NodeId,
        download: Option<bool>,
        as_of_unix_s: u64,
        now_unix_s: u64,
    ) -> Answer {
        let Some(token) = token else {
            return Ok(Err(TokenRefusal::Missing));
        };
        let asked = Asked {
            token: token.to_owned(),
            bearer,
            download,
            as_of_unix_s,
            now_unix_s,
            answer: Mutex::default(),
        };
        // Most requests of a download change nothing, and wait for nobody.
        let records = self.load()?;
        match find(&records, token, Some(bearer), as_of_unix_s) {
            None => return Ok(Err(TokenRefusal::Invalid)),
            Some(index) if asked.is_done(&records[index]) => return Ok(Ok(Held::Yes)),
            Some(_) => {}
        }
        drop(records);
        let asked = Arc::new(asked);
        locked(&self.queue.waiting).push(asked.clone());
        let _turn = locked(&self.queue.turn);
        if let Some(answer) = locked(&asked.answer).take() {
            return answer;
        }
        let mut all = mem::take(&mut *locked(&self.queue.waiting));
        // It is among them, unless whoever took it out panicked.
        all.retain(|other| !Arc::ptr_eq(other, &asked));
        all.push(asked);
        let written = self.write_down(&all);
        let (mine, others) = match written {
            Ok(mut answers) => (answers.pop().map(Ok), answers.into_iter().map(Ok).collect()),
            // For the others: ask again.
            Err(error) => (Some(Err(error)), Vec::new()),
        };
        let mut others = others.into_iter();
        for other in &all[..all.len() - 1] {
            let answer = others.next().unwrap_or(Err(TokenError::Locked));
            *locked(&other.answer) = Some(answer);
        }
        mine.unwrap_or(Err(TokenError::Locked))
    }

    /// One answer for each; what they say is on the disk.
    fn write_down(
        &self,
        all: &[Arc<Asked>],
    ) -> Result<Vec<Result<Held, TokenRefusal>>, TokenError> {
        let _lock = self.lock_soon()?;
        let mut records = self.load_to_change()?;
        let mut has_changed = false;
        let answers = all.iter().map(|asked| {
            let (answer, changed) = asked.mark(&mut records);
            has_changed |= changed;
            answer
        });
        let answers: Vec<_> = answers.collect();
        if has_changed {
            let now_unix_s = all.iter().map(|asked| asked.now_unix_s).max();
            self.prune(&mut records, now_unix_s.unwrap_or_default());
            self.store(&records)?;
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::state::StateDir;

    const NOW: u64 = 1_000_000;
    const NODE: NodeId = NodeId([7; 32]);
    const TEN_MINUTES: Option<Duration> = Some(Duration::from_secs(600));

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        (dir, Tokens::new(state))
    }

    /// The answer was let in, and then the host slept, or its clock was moved on, or back.
    #[test]
    fn an_answer_goes_on_whatever_the_clock_does_until_its_token_is_taken_back() {
        for (slept, usage) in [
            (1, Use::OneTime),
            (59, Use::OneTime),
            (61, Use::OneTime),
            (3_000, Use::OneTime),
            (86_400, Use::OneTime),
            (-30, Use::OneTime),
            (-86_400, Use::OneTime),
            (500, Use::Reusable),
        ] {
            let (_dir, tokens) = tokens();
            let token = tokens.create(usage, TEN_MINUTES, "", NOW).unwrap();
            let held = |at| tokens.hold(Some(&token), NODE, true, at).unwrap();
            let goes_on = |last, now| tokens.go_on(Some(&token), NODE, last, now).unwrap();
            assert_eq!(held(NOW), Ok(Held::Yes));
            let now = NOW.checked_add_signed(slept).unwrap();
            assert_eq!(goes_on(NOW, now), Ok(Held::Yes), "{slept}");
            // And from there on as ever: also for the next request.
            assert_eq!(held(now + 1), Ok(Held::Yes), "{slept}");
            assert_eq!(goes_on(now, now + 30), Ok(Held::Yes), "{slept}");
            let other = tokens.go_on(Some(&token), NodeId([9; 32]), NOW, now);
            assert_eq!(other.unwrap().is_ok(), usage == Use::Reusable, "{slept}");
            let id = token.split('-').next().unwrap();
            tokens.revoke(id, now + 31).unwrap();
            assert_eq!(goes_on(now + 30, now + 31), Err(TokenRefusal::Invalid));
            assert_eq!(goes_on(NOW, now + 31), Err(TokenRefusal::Invalid));
        }
    }

    #[test]
    fn only_a_token_that_admits_often_has_an_end_of_its_own() {
        let (_dir, tokens) = tokens();
        let once = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
        let often = tokens.create(Use::Reusable, TEN_MINUTES, "", NOW).unwrap();
        let ever = tokens.create(Use::Reusable, None, "", NOW).unwrap();
        for (token, at, until) in [
            (Some(&*once), NOW, None),
            (Some(&*often), NOW, Some(NOW + 600)),
            (Some(&*often), NOW + 600, None),
            (Some(&*ever), NOW, None),
            (Some("x"), NOW, None),
            (None, NOW, None),
        ] {
            assert_eq!(tokens.reusable_until(token, at).unwrap(), until);
        }
    }
}
