//! What members cost a seed, with few of them: `cargo xtask members` has ten thousand.

use std::time::Duration;

use rootswarm_tests::crowd::Crowd;
use rootswarm_tests::scenario::scenario;

/// What a member may cost: ten thousand within 500 MB. What an allocator does not give back is in it, and
/// the first 256, whose packets are handed to the kernel ten at a time, cost 12 kB more.
const MEMBER_BYTES_MAX: u64 = 48_000;

/// What does not grow with their number, in those 500 MB too: up to 32 uploads, and what is kept of those before.
const UPLOADS_BYTES_MAX: u64 = 8_000_000;

#[allow(clippy::print_stdout)] // The figures, for whoever asks with --nocapture.
fn costs_little(members: usize, image_bytes: u64) {
    scenario(4 * image_bytes + 50_000_000, |directory| {
        let crowd = Crowd {
            members,
            image_bytes,
            limit: Duration::from_secs(240),
        };
        let cost = crowd.run(directory)?;
        let each = cost.each(&crowd);
        println!("{members} members, {image_bytes} bytes: {each:?} bytes each, {cost:?}");
        assert!(cost.chunks > 0, "those who fetch get something");
        let shared = UPLOADS_BYTES_MAX / members as u64;
        for (bytes, shared) in each.into_iter().zip([0, shared]) {
            assert!(bytes > 1_000, "{cost:?}: nobody is there");
            assert!(bytes <= MEMBER_BYTES_MAX + shared, "{cost:?}");
        }
        Ok(())
    });
}

#[test]
fn a_thousand_members_cost_little() {
    costs_little(1_000, 3_000_000);
}

#[test]
fn of_an_image_with_many_chunks_too() {
    costs_little(1_000, 64_000_000);
}
