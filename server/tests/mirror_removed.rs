//! What was removed at the first seed is not to be had at the mirror, also where the name was published again
//! before the mirror looked.

mod common;
#[path = "common/pair.rs"]
mod pair;

use common::{Server, run_ok, squashfs, until};
use pair::{Pair, names};

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_published_again_means_nothing_of_what_was_removed() {
    check(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_where_the_mirror_was_away_meanwhile() {
    check(true).await;
}

async fn check(is_away: bool) {
    let mut pair = Pair::new(&[]);
    let days: Vec<Vec<u8>> = (1..=4)
        .map(|day| squashfs(200_000 + day, 2 * day as u64 + 1))
        .collect();
    let second = pair.second();
    for day in &days[..2] {
        pair.publish("db", day);
    }
    until("two versions", || {
        names(&second).len() == 2 && names(&pair.first()) == names(&second)
    })
    .await;
    if is_away {
        pair.b.child.kill().unwrap();
        pair.b.child.wait().unwrap();
    }
    run_ok(&pair.first(), &["remove", "db"]);
    pair.publish("db", &days[2]);
    if is_away {
        let of = format!("swarm://{}", pair.at);
        pair.b = Server::start(&second, &["--mirror", &of]);
    }
    let in_step = || names(&pair.first()) == names(&second);
    until("what was published again", in_step).await;
    assert_eq!(names(&second).len(), 1, "away: {is_away}");
    for day in &days[..2] {
        let id = blake3::hash(day).to_hex().to_string();
        // Asking for it would keep it.
        let copy = second.join("images").join(&id);
        until("the end of what was removed", || !copy.exists()).await;
        let answer = pair.b.request("GET", &format!("/blobs/{id}"), &[]);
        assert_eq!(answer.status, 404, "away: {is_away}");
    }
    // It goes on as any other name, with what it has meant since.
    pair.publish("db", &days[3]);
    until("the next version", in_step).await;
    assert_eq!(names(&second).len(), 2, "away: {is_away}");
}
