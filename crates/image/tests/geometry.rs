//! Chunk sizes and geometry: tables, and a naive cutter as the oracle.

use proptest::prelude::*;
use rootswarm_image::{ChunkIndex, ChunkSize, ChunkSizeError, Geometry, GeometryError, limits};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

#[test]
fn a_chunk_size_is_a_power_of_two_in_range() {
    for log2 in 0..=u8::MAX {
        match ChunkSize::from_log2(log2) {
            Ok(size) => {
                assert!((16..=24).contains(&log2), "{log2}");
                assert_eq!((size.log2(), size.bytes()), (log2, 1 << log2));
                assert_eq!(ChunkSize::from_bytes(1 << log2), Ok(size));
            }
            Err(error) => {
                assert!(!(16..=24).contains(&log2), "{log2}");
                assert_eq!(error, ChunkSizeError::Log2 { found: log2 });
            }
        }
    }
    for found in [
        0,
        1,
        32 * KIB,
        64 * KIB - 1,
        64 * KIB + 1,
        96 * KIB,
        32 * MIB,
        1 << 63,
        u64::MAX,
    ] {
        assert_eq!(
            ChunkSize::from_bytes(found),
            Err(ChunkSizeError::Bytes { found })
        );
    }
    let message = ChunkSizeError::Bytes { found: 3 }.to_string();
    assert_eq!(
        message,
        "chunk size 3 bytes: expected a power of two from 65536 to 16777216"
    );
    assert_eq!(ChunkSize::MIN.to_string(), "64 KiB");
    assert_eq!(ChunkSize::MAX.to_string(), "16 MiB");
}

#[test]
fn the_chunk_size_grows_with_the_image() {
    for (length, expected) in [
        (0, 128 * KIB),
        (1, 128 * KIB),
        (256 * MIB, 128 * KIB),
        (256 * MIB + 1, 256 * KIB),
        (512 * MIB, 256 * KIB),
        (512 * MIB + 1, 512 * KIB),
        (GIB, 512 * KIB),
        (GIB + 1, MIB),
        (2 * GIB, MIB),
        (2 * GIB + 1, 2 * MIB),
        (4 * GIB + 1, 4 * MIB),
        (8 * GIB + 1, 8 * MIB),
        (16 * GIB, 8 * MIB),
        (16 * GIB + 1, 16 * MIB),
        (32 * GIB + 1, 16 * MIB),
        (64 * GIB, 16 * MIB),
        (TIB, 16 * MIB),
        (u64::MAX, 16 * MIB),
    ] {
        let size = ChunkSize::for_length(length);
        assert_eq!(size.bytes(), expected, "{length} bytes");
        let count = length.div_ceil(size.bytes());
        assert!(
            length > 32 * GIB || count <= 2048,
            "{length} bytes: {count} chunks"
        );
        assert!(
            length > 64 * GIB || count <= 4096,
            "{length} bytes: {count} chunks"
        );
        assert_eq!(
            Geometry::new(length, size).is_ok(),
            length <= TIB,
            "{length} bytes"
        );
    }
}

#[test]
fn no_image_has_more_chunks_than_the_limit() {
    let most = u64::from(limits::MAX_CHUNK_COUNT);
    for log2 in 16..=24 {
        let size = ChunkSize::from_log2(log2).expect("in range");
        let length = most * size.bytes();
        assert_eq!(
            Geometry::new(length, size).map(|geometry| geometry.chunk_count()),
            Ok(limits::MAX_CHUNK_COUNT)
        );
        let found = most + 1;
        assert_eq!(
            Geometry::new(length + 1, size),
            Err(GeometryError::TooManyChunks {
                length: length + 1,
                chunk_size: size,
                found
            })
        );
        assert!(Geometry::new(u64::MAX, size).is_err());
    }
}

#[test]
fn an_index_past_the_end_is_harmless() {
    for length in [0, 1, 64 * KIB, 64 * KIB + 1] {
        let geometry = Geometry::new(length, ChunkSize::MIN).expect("few chunks");
        for past in [geometry.chunk_count(), 1 << 20, u32::MAX] {
            let index = ChunkIndex(past);
            assert!(!geometry.contains(index));
            assert_eq!(geometry.chunk_len(index), 0);
            assert_eq!(geometry.offset(index), u64::from(past) * 64 * KIB);
        }
    }
}

proptest! {
    #[test]
    fn cuts_like_the_naive_one(length in 0..20 * MIB, log2 in 16..=24_u8) {
        let size = ChunkSize::from_log2(log2).expect("in range");
        let geometry = Geometry::new(length, size).expect("few chunks");
        let mut offset = 0;
        let mut count = 0;
        for index in geometry.indices() {
            prop_assert_eq!(index, ChunkIndex(count));
            prop_assert!(geometry.contains(index));
            prop_assert_eq!(geometry.offset(index), offset);
            let expected = (length - offset).min(size.bytes());
            prop_assert!(expected > 0);
            prop_assert_eq!(u64::from(geometry.chunk_len(index)), expected);
            offset += expected;
            count += 1;
        }
        prop_assert_eq!(offset, length);
        prop_assert_eq!(geometry.chunk_count(), count);
        prop_assert_eq!(geometry.indices().len(), count as usize);
    }
}
