//! Chunks that take long: what may be late, and what counts as one failure.

use super::*;

/// A bench whose image has chunks of this length.
fn bench_of(role: Role, have: Bitfield, chunk_bytes: u64) -> Bench {
    let mut bench = Bench::new(role, have.clone());
    let size = ChunkSize::from_bytes(chunk_bytes).unwrap();
    let config = Config {
        node: id(5),
        role,
        image: image(),
        geometry: Geometry::new(u64::from(CHUNKS) * size.bytes(), size).unwrap(),
        have,
        rack: None,
        rng_seed: 5,
    };
    bench.node = Node::new(config, Instant::ZERO);
    bench
}

fn cancels(outputs: &[Output]) -> usize {
    let is_cancel = |output: &&Output| {
        matches!(
            output,
            Output::Send {
                message: Message::Cancel(_),
                ..
            }
        )
    };
    outputs.iter().filter(is_cancel).count()
}

/// What was asked of a seed comes behind the chunk that is on its way from it: it is not called off while
/// that one moves, and is when it has ended. A peer has no such time.
#[test]
fn an_answer_may_wait_behind_a_chunk_of_the_same_seed() {
    for (role, called_off) in [(Role::Seed, false), (Role::Peer, true)] {
        for chunk_bytes in [256 << 10, 4 << 20, 16 << 20] {
            let mut bench = bench_of(Role::Peer, some(&[]), chunk_bytes);
            let mut asked = requests(&bench.meet(100, role, Have::Everything));
            for _ in 0..100 {
                asked.extend(requests(&bench.later(Duration::from_millis(10))));
                if asked.len() >= 2 {
                    break;
                }
            }
            assert!(asked.len() >= 2, "{role:?} {chunk_bytes}: {asked:?}");
            bench.started(100, asked[0].1);
            let limit = limits::for_chunks_of(chunk_bytes, limits::ANSWER_TIMEOUT_MIN) * 4;
            let end = bench.now + limit;
            let mut seen = 0;
            while bench.now < end {
                seen += cancels(&bench.later(Duration::from_millis(100)));
            }
            assert_eq!(seen > 0, called_off, "{role:?} {chunk_bytes}: {seen}");
            bench.ended(100, asked[0].1, ChunkOutcome::Broken);
            let mut late = 0;
            for _ in 0..20 {
                late += cancels(&bench.later(Duration::from_millis(100)));
            }
            assert!(late + seen > 0, "{role:?} {chunk_bytes}: waits for ever");
        }
    }
}

/// Between the end of one chunk and the beginning of the next, whenever that is, nothing is called off that
/// waited behind the first.
#[test]
fn a_moment_between_two_chunks_of_a_seed_is_not_late() {
    for phase in 0..10 {
        let chunk_bytes = 16 << 20;
        let mut bench = bench_of(Role::Peer, some(&[]), chunk_bytes);
        let mut asked = requests(&bench.meet(100, Role::Seed, Have::Everything));
        for _ in 0..100 {
            asked.extend(requests(&bench.later(Duration::from_millis(10))));
        }
        assert!(asked.len() >= 3, "{asked:?}");
        bench.started(100, asked[0].1);
        let limit = limits::for_chunks_of(chunk_bytes, limits::ANSWER_TIMEOUT_MIN) * 2;
        let end = bench.now + limit + Duration::from_millis(50 * phase);
        while bench.now < end {
            assert_eq!(cancels(&bench.later(Duration::from_millis(10))), 0);
        }
        let mut seen = cancels(&bench.ended(100, asked[0].1, ChunkOutcome::Verified));
        for _ in 0..40 {
            seen += cancels(&bench.later(Duration::from_millis(10)));
        }
        bench.started(100, asked[1].1);
        for _ in 0..100 {
            seen += cancels(&bench.later(Duration::from_millis(10)));
        }
        assert_eq!(seen, 0, "phase {phase}");
    }
}

/// Everything on its way from a seed breaks off at once, as when a link was down: that is one failure. The
/// connection is kept, and used again after the shortest wait.
#[test]
fn what_breaks_off_together_is_one_failure() {
    for count in [2, 7, 8, 16] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.meet(100, Role::Seed, Have::Everything);
        for index in 0..count {
            bench.started(100, index);
        }
        let mut outputs = Vec::new();
        for index in 0..count {
            outputs.extend(bench.ended(100, index, ChunkOutcome::Broken));
        }
        assert_eq!(closes(&outputs), [], "{count}");
        let mut asked = 0;
        let end = bench.now + limits::FAILURE_BACKOFF * 2;
        while bench.now < end {
            asked += requests(&bench.later(Duration::from_millis(10))).len();
        }
        assert!(asked > 0, "{count}");
    }
}

/// The same at the seed: eight uploads that fail with one link keep a node waiting as long as one does.
#[test]
fn uploads_that_fail_together_are_one_failure() {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    let first = uploads(&bench.meet(1, Role::Peer, Have::Nothing));
    assert!(first.len() > 1);
    for (_, index) in &first {
        bench.input(Input::UploadEnded {
            conn: ConnId(1),
            index: ChunkIndex(*index),
            outcome: UploadOutcome::Failed,
        });
    }
    let again = uploads(&bench.later(limits::FAILURE_BACKOFF));
    assert!(!again.is_empty());
}

/// A push of 16 MiB takes its time: nobody else is sent the same after four seconds, as it is with usual ones.
#[test]
fn a_long_push_is_not_taken_for_a_stuck_one() {
    for (chunk_bytes, is_stuck) in [(1 << 20, true), (16 << 20, false)] {
        let mut bench = bench_of(Role::Seed, Bitfield::full(CHUNKS), chunk_bytes);
        bench.meet(1, Role::Peer, Have::Nothing);
        bench.meet(2, Role::Peer, Have::Nothing);
        let again = uploads(&bench.later(limits::UPLOAD_PATIENCE_FIRST));
        assert_eq!(!again.is_empty(), is_stuck, "{chunk_bytes}");
    }
}
