//! Lists in frames: how much memory a count is worth before its items were seen.
//!
//! serde makes room for up to 1 MiB of items when a frame merely claims them: ten bytes would cost
//! a megabyte. Here a claim is worth no more than the protocol's bound for that list. Whether a list
//! that is really longer is refused is the codec's business.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

/// For `#[serde(deserialize_with = "…")]`: reads a list that should have at most `MOST` items.
///
/// # Errors
/// The deserializer's.
pub fn bounded_sequence<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let claimed = sequence.size_hint().unwrap_or(0);
            let mut items = Vec::with_capacity(claimed.min(MOST));
            while let Some(item) = sequence.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_seq(Items::<T, MOST>(PhantomData))
}
