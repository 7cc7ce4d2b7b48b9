//! Whether the swarm key in the state directory is still the one that the running server has.
//!
//! A server reads the key once, at its start. Who copies another installation's key there, to make the host
//! its mirror, has a server that goes on with the old key, and commands that sign with the new one.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rootswarm_image::SwarmPublicKey;

use crate::state::StateDir;

/// How often the file is looked at: one `stat` call.
const POLL: Duration = Duration::from_secs(1);

/// Says once what has become of the key file, whenever that changes.
pub(crate) async fn watch(state: StateDir, own: SwarmPublicKey) {
    let mut seen = None;
    let mut said = None;
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        poll.tick().await;
        let state = state.clone();
        let look = move || {
            let stamp = std::fs::metadata(state.key_file()).ok();
            let stamp = stamp.map(|it| (it.ino(), it.ctime(), it.ctime_nsec()));
            (Some(stamp) != seen).then(|| (Some(stamp), doubt(&state, &own)))
        };
        let Ok(Some((stamp, found))) = tokio::task::spawn_blocking(look).await else {
            continue;
        };
        seen = stamp;
        if found != said {
            match &found {
                Some(line) => tracing::error!("{line}"),
                None => tracing::info!("the swarm key is the one that this server runs with again"),
            }
            said = found;
        }
    }
}

/// What is to be said of the key file to a server that runs with `own`.
fn doubt(state: &StateDir, own: &SwarmPublicKey) -> Option<String> {
    let path = state.key_file();
    let path = path.display();
    match state.existing_key() {
        Ok(Some(key)) if key.public() == *own => None,
        Ok(Some(key)) => Some(format!(
            "swarm key {path} is {} now, and this server runs with {own}: restart it (`systemctl restart \
             rootswarm`), or put the old key back; what is signed meanwhile is not served",
            key.public()
        )),
        Ok(None) => Some(format!(
            "swarm key {path} is gone, and this server goes on with the one it read at its start, {own}: \
             restore it from a backup"
        )),
        Err(error) => Some(format!(
            "this server goes on with the swarm key that it read at its start, {own}: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_the_key() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [own, other] = dirs.each_ref().map(|it| StateDir::open(it.path()).unwrap());
        let (key, other_key) = (own.key().unwrap(), other.key().unwrap().public());
        let public = key.public();
        let said = || doubt(&own, &public).unwrap_or_default();
        assert_eq!(said(), "");
        std::fs::copy(other.key_file(), own.key_file()).unwrap();
        let line = said();
        for words in [&other_key.to_string(), &public.to_string(), "restart it"] {
            assert!(line.contains(words), "{line}");
        }
        std::fs::write(own.key_file(), "x").unwrap();
        assert!(said().contains("goes on with the swarm key that it read"));
        std::fs::remove_file(own.key_file()).unwrap();
        assert!(said().contains("is gone"));
    }
}
