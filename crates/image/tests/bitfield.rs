//! `Bitfield` against a `Vec<bool>`, which is slow and obvious.

use proptest::prelude::*;
use rootswarm_image::{Bitfield, BitfieldError, ChunkIndex};

/// Lengths around the ends of bytes and words, where mistakes are made.
const LENGTHS: [u32; 15] = [
    0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 65536,
];

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![prop::sample::select(&LENGTHS[..]), 0..400_u32]
}

/// A naive set, and the bitfield of the same chunks.
fn pair() -> impl Strategy<Value = (Vec<bool>, Bitfield)> {
    length()
        .prop_flat_map(|len| prop::collection::vec(any::<bool>(), len as usize))
        .prop_map(|naive| {
            let set = bitfield_of(&naive);
            (naive, set)
        })
}

fn bitfield_of(naive: &[bool]) -> Bitfield {
    let mut set = Bitfield::new(naive.len() as u32);
    for (index, _) in naive.iter().enumerate().filter(|(_, has)| **has) {
        set.set(ChunkIndex(index as u32));
    }
    set
}

fn positions(naive: &[bool], wanted: bool) -> Vec<ChunkIndex> {
    let indices = (0..).map(ChunkIndex);
    indices
        .zip(naive)
        .filter(|(_, has)| **has == wanted)
        .map(|(index, _)| index)
        .collect()
}

/// Everything that can be asked, against the naive answer.
fn check(set: &Bitfield, naive: &[bool]) {
    let count = naive.iter().filter(|has| **has).count();
    assert_eq!(set.len() as usize, naive.len());
    assert_eq!(set.count() as usize, count);
    assert_eq!(set.is_full(), count == naive.len());
    assert_eq!(set.is_empty(), count == 0);
    assert_eq!(
        set.iter_set().collect::<Vec<_>>(),
        positions(naive, true),
        "set"
    );
    assert_eq!(
        set.iter_missing().collect::<Vec<_>>(),
        positions(naive, false),
        "missing"
    );
    for (index, has) in naive.iter().enumerate() {
        assert_eq!(set.get(ChunkIndex(index as u32)), *has, "chunk {index}");
    }
    for past in [naive.len() as u32, naive.len() as u32 + 64, u32::MAX] {
        assert!(!set.get(ChunkIndex(past)), "chunk {past} past the end");
    }
    assert_eq!(set.words().len(), naive.len().div_ceil(64));
    let ones: u32 = set.words().iter().map(|word| word.count_ones()).sum();
    assert_eq!(ones as usize, count, "stray bits in words");
    let bytes = set.to_bytes();
    assert_eq!(bytes.len(), naive.len().div_ceil(8));
    assert_eq!(Bitfield::from_bytes(set.len(), &bytes).as_ref(), Ok(set));
}

#[test]
fn empty_and_full_at_every_boundary() {
    for len in LENGTHS {
        check(&Bitfield::new(len), &vec![false; len as usize]);
        check(&Bitfield::full(len), &vec![true; len as usize]);
    }
}

#[test]
fn a_bitfield_of_another_size_or_with_stray_bits_is_refused() {
    let length = |len, expected, found| {
        Err(BitfieldError::Length {
            len,
            expected,
            found,
        })
    };
    let stray = |len, found| Err(BitfieldError::StrayBit { len, found });
    let cases: [(u32, &[u8], Result<u32, BitfieldError>); 11] = [
        (0, &[], Ok(0)),
        (0, &[0], length(0, 0, 1)),
        (1, &[], length(1, 1, 0)),
        (1, &[1], Ok(1)),
        (1, &[2], stray(1, 1)),
        (8, &[0xff], Ok(8)),
        (9, &[0xff], length(9, 2, 1)),
        (9, &[0xff, 0x01], Ok(9)),
        (9, &[0x00, 0x82], stray(9, 9)),
        (64, &[0xff; 9], length(64, 8, 9)),
        // A claim of 512 MiB of bits allocates nothing: the bytes are not there.
        (u32::MAX, &[0xff], length(u32::MAX, 1 << 29, 1)),
    ];
    for (len, bytes, expected) in cases {
        let found = Bitfield::from_bytes(len, bytes).map(|set| set.count());
        assert_eq!(found, expected, "{len} chunks from {bytes:02x?}");
    }
}

#[test]
fn the_bytes_are_frozen() {
    let mut set = Bitfield::new(20);
    for index in [0, 1, 7, 8, 19] {
        set.set(ChunkIndex(index));
    }
    assert_eq!(set.to_bytes(), [0b1000_0011, 0b0000_0001, 0b0000_1000]);
}

/// A debug build asserts instead: the caller should have refused the index.
#[test]
#[cfg_attr(debug_assertions, should_panic = "chunk 10 of 10")]
fn a_chunk_past_the_end_cannot_be_set() {
    let mut set = Bitfield::new(10);
    assert!(!set.set(ChunkIndex(10)));
    assert!(!set.clear(ChunkIndex(10)));
    check(&set, &[false; 10]);
}

proptest! {
    #[test]
    fn sets_and_clears_like_the_naive_one(
        len in 1..300_u32,
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..600),
    ) {
        let mut naive = vec![false; len as usize];
        let mut set = Bitfield::new(len);
        for (index, value) in steps {
            let index = index.index(len as usize);
            let changes = naive[index] != value;
            naive[index] = value;
            let chunk = ChunkIndex(index as u32);
            let changed = if value { set.set(chunk) } else { set.clear(chunk) };
            prop_assert_eq!(changed, changes);
        }
        check(&set, &naive);
    }

    #[test]
    fn bytes_survive_the_round_trip((naive, set) in pair()) {
        check(&set, &naive);
    }

    #[test]
    fn combines_like_the_naive_one(
        bits in prop::collection::vec(any::<(bool, bool)>(), 0..300),
    ) {
        let (mine, theirs): (Vec<_>, Vec<_>) = bits.iter().copied().unzip();
        let (a, b) = (bitfield_of(&mine), bitfield_of(&theirs));
        let difference: Vec<_> = bits.iter().map(|(mine, theirs)| *mine && !theirs).collect();
        let union: Vec<_> = bits.iter().map(|(mine, theirs)| *mine || *theirs).collect();
        prop_assert_eq!(a.iter_difference(&b).collect::<Vec<_>>(), positions(&difference, true));
        let mut sum = a.clone();
        sum.union_with(&b);
        check(&sum, &union);
    }

    #[test]
    fn any_bytes_are_refused_or_read_back_the_same(
        len in 0..300_u32,
        bytes in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(set) = Bitfield::from_bytes(len, &bytes) {
            prop_assert_eq!(set.to_bytes(), bytes);
        }
    }
}
