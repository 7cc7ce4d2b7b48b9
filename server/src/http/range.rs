//! `Range`, `If-Range`, `If-None-Match`: which bytes of a resource a request means (RFC 9110, 13
//! and 14). Pure: headers in, decision out.

use axum::http::HeaderMap;
use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};

/// What to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// 200 with everything.
    Whole,
    /// 206 with the bytes from `start` up to, not including, `end`.
    Part {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// 416.
    Unsatisfiable,
    /// 304: the client has it.
    NotModified,
}

/// Decides for a resource of `length` bytes whose entity tag, with its quotes, is `etag`.
pub fn select(headers: &HeaderMap, length: u64, etag: &str) -> Selection {
    if matches_any(headers, etag) {
        return Selection::NotModified;
    }
    let Some(range) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else {
        return Selection::Whole;
    };
    if let Some(condition) = headers.get(IF_RANGE) {
        // A weak tag or a date never guarantees equal bytes; images change, so only ours counts.
        if condition.as_bytes() != etag.as_bytes() {
            return Selection::Whole;
        }
    }
    parse(range, length)
}

fn matches_any(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|list| {
            list.split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
        })
}

/// A header that is no single range of bytes is as if it were not there, which RFC 9110 allows and
/// every client must expect.
fn parse(range: &str, length: u64) -> Selection {
    let Some(set) = range.trim().strip_prefix("bytes=") else {
        return Selection::Whole;
    };
    let Some((first, last)) = set.trim().split_once('-') else {
        return Selection::Whole;
    };
    let number = |text: &str| -> Option<Option<u64>> {
        if text.is_empty() {
            return Some(None);
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // More digits than a u64 holds is past the end of anything.
        Some(Some(text.parse().unwrap_or(u64::MAX)))
    };
    let (Some(first), Some(last)) = (number(first.trim()), number(last.trim())) else {
        return Selection::Whole;
    };
    match (first, last) {
        (None, None) => Selection::Whole,
        (None, Some(suffix)) if suffix == 0 || length == 0 => Selection::Unsatisfiable,
        (None, Some(suffix)) => Selection::Part {
            start: length.saturating_sub(suffix),
            end: length,
        },
        (Some(start), Some(last)) if last < start => Selection::Whole,
        (Some(start), _) if start >= length => Selection::Unsatisfiable,
        (Some(start), last) => {
            let end = last.map_or(length, |last| last.saturating_add(1).min(length));
            Selection::Part { start, end }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selection::{NotModified, Part, Unsatisfiable, Whole};
    use super::*;

    fn check(headers: &[(&'static str, &str)], length: u64, expected: Selection) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        assert_eq!(
            select(&map, length, "\"abc\""),
            expected,
            "{headers:?} of {length}"
        );
    }

    #[test]
    fn ranges() {
        for (range, length, expected) in [
            ("bytes=0-0", 10, Part { start: 0, end: 1 }),
            ("bytes=0-9", 10, Part { start: 0, end: 10 }),
            ("bytes=3-", 10, Part { start: 3, end: 10 }),
            ("bytes=9-", 10, Part { start: 9, end: 10 }),
            ("bytes=3-999", 10, Part { start: 3, end: 10 }),
            ("bytes=-3", 10, Part { start: 7, end: 10 }),
            ("bytes=-999", 10, Part { start: 0, end: 10 }),
            (
                "bytes=0-18446744073709551615",
                10,
                Part { start: 0, end: 10 },
            ),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=10-12", 10, Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Unsatisfiable),
            ("bytes=5-3", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=+1-2", 10, Whole),
            ("bytes=1", 10, Whole),
            ("bytes=0-1,3-4", 10, Whole),
            ("chunks=0-1", 10, Whole),
            ("", 10, Whole),
        ] {
            check(&[("range", range)], length, expected);
        }
    }

    #[test]
    fn conditions() {
        check(
            &[("range", "bytes=1-2"), ("if-range", "\"abc\"")],
            10,
            Part { start: 1, end: 3 },
        );
        check(
            &[("range", "bytes=1-2"), ("if-range", "\"old\"")],
            10,
            Whole,
        );
        check(
            &[("range", "bytes=1-2"), ("if-range", "W/\"abc\"")],
            10,
            Whole,
        );
        check(
            &[
                ("range", "bytes=1-2"),
                ("if-range", "Sun, 22 Nov 2026 12:00:00 GMT"),
            ],
            10,
            Whole,
        );
        check(&[("if-none-match", "\"abc\"")], 10, NotModified);
        check(&[("if-none-match", "\"x\", W/\"abc\"")], 10, NotModified);
        check(&[("if-none-match", "*")], 10, NotModified);
        check(&[("if-none-match", "\"x\"")], 10, Whole);
        check(&[], 10, Whole);
    }
}
