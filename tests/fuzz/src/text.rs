//! Targets for what people and programs write as text.

use std::path::Path;

use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderValue};
use rootswarm::config::{ConfigFile, Settings as ServerSettings};
use rootswarm::http::range::{self, Selection};
use rootswarm::network::Cidr;
use rootswarm::{token, units};
use rootswarm_agent::baked::{self, Baked};
use rootswarm_agent::plan::Trust;
use rootswarm_agent::{args, cmdline, http_response};
use rootswarm_image::{HostPort, ImageName, RootUrl, SwarmPublicKey};

fn utf8(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// Errors stand on a console and in logs: one line each, whatever was in the input.
fn one_line(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(
        !text.chars().any(|c| c.is_control()),
        "an error of several lines, or with control characters: {text:?}"
    );
}

pub(crate) fn root_url(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    match text.parse::<RootUrl>() {
        Ok(url) => {
            let again = url.to_string();
            assert_eq!(again.parse::<RootUrl>().as_ref(), Ok(&url), "{again}");
            assert_eq!(
                text.contains("@blake3:"),
                url.pin().is_some(),
                "a pin that was written is a pin: {text}"
            );
        }
        Err(error) => one_line(&error),
    }
}

/// A name is what it was, and harmless as part of a path, a URL or a shell's word.
pub(crate) fn name(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    match text.parse::<ImageName>() {
        Ok(name) => {
            assert_eq!(name.as_str(), text);
            assert!((1..=64).contains(&text.len()) && text != "." && text != "..");
            assert!(
                text.bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
            );
        }
        Err(error) => one_line(&error),
    }
}

pub(crate) fn key(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    match text.parse::<SwarmPublicKey>() {
        Ok(key) => assert_eq!(key.to_string(), text, "one spelling for a key"),
        Err(error) => one_line(&error),
    }
}

/// Whatever stands on the command line: a swarm is booted only with a pin or the baked-in key,
/// and what the initrd requires stays required.
pub(crate) fn cmdline(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    let bare = Baked::default();
    if let Ok(plan) = cmdline::plan(text, &bare) {
        let is_swarm = matches!(plan.fetch.source, RootUrl::Swarm { .. });
        assert!(
            !is_swarm || plan.fetch.source.pin().is_some(),
            "a swarm without pin and key: {text:?}"
        );
    }
    let key = SwarmPublicKey::from_bytes([7; 32]);
    let mut strict = Baked {
        key: Some(key),
        ..Baked::default()
    };
    strict.settings.require_verify = Some(true);
    match cmdline::plan(text, &strict) {
        Ok(plan) => {
            assert_ne!(plan.fetch.trust, Trust::Unverified, "{text:?}");
            if let Trust::Key { key: used, .. } = plan.fetch.trust {
                assert_eq!(used, key, "the baked-in key was replaced: {text:?}");
            }
        }
        Err(error) => one_line(&error),
    }
}

pub(crate) fn agent_conf(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    if let Err(error) = baked::parse_conf(text, Path::new("agent.conf")) {
        one_line(&error);
    }
}

pub(crate) fn server_conf(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    match ConfigFile::parse(text, Path::new("rootswarm.toml")) {
        // A file that lists networks never means everybody.
        Ok(file) => {
            let listed = file.allow.clone();
            let settings = ServerSettings::from(file);
            assert_eq!(settings.allow, listed.unwrap_or_default());
        }
        Err(error) => one_line(&error),
    }
}

/// The file is written as it was read, and no token that was made up is in it.
pub(crate) fn tokens(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    if let Ok(records) = token::parse(text) {
        let again = token::format(&records);
        assert_eq!(token::parse(&again), Ok(records.clone()), "{again:?}");
        for line in text.lines() {
            assert_eq!(token::find(&records, line, None, 0), None, "{line:?}");
        }
    }
}

pub(crate) fn agent_status(input: &[u8]) {
    if let Ok(document) = serde_json::from_slice::<rootswarm_agent::status::Document>(input) {
        let text = serde_json::to_string(&document).expect("a document is JSON");
        let again: rootswarm_agent::status::Document =
            serde_json::from_str(&text).expect("its own document");
        assert_eq!(again, document);
        // What an admin is shown of a document that a node wrote.
        let _ = rootswarm_agent::status::describe(&document);
    }
}

pub(crate) fn seed_status(input: &[u8]) {
    if let Ok(document) = serde_json::from_slice::<rootswarm::status::StatusDocument>(input) {
        let text = serde_json::to_string(&document).expect("a document is JSON");
        let mut again: rootswarm::status::StatusDocument =
            serde_json::from_str(&text).expect("its own document");
        // serde_json reads a fraction to its last bit but one.
        for (read, written) in again.images.iter_mut().zip(&document.images) {
            let (found, expected) = (read.seed_copies, written.seed_copies);
            assert!((found - expected).abs() <= expected.abs() * 1e-12, "{text}");
            read.seed_copies = expected;
        }
        assert_eq!(again, document);
        let _ = rootswarm::status::table(&document);
    }
}

/// First two bytes: the resource's length; then lines of Range, If-Range and If-None-Match.
pub(crate) fn range(input: &[u8]) {
    let Some((length, lines)) = input.split_first_chunk::<2>() else {
        return;
    };
    let length = u64::from(u16::from_le_bytes(*length));
    let mut headers = HeaderMap::new();
    let names = [RANGE, IF_RANGE, IF_NONE_MATCH];
    for (name, line) in names.iter().zip(lines.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(line)
            && !line.is_empty()
        {
            headers.insert(name, value);
        }
    }
    if let Selection::Part { start, end } = range::select(&headers, length, "\"tag\"") {
        assert!(start < end && end <= length, "{start}..{end} of {length}");
    }
}

/// What a web server says of the part it sends.
pub(crate) fn content_range(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    if let Some((first, Some(total))) = http_response::parse_content_range(text) {
        assert!(first < total);
    }
}

pub(crate) fn quantity(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    let _ = units::parse_size(text);
    let _ = units::parse_duration(text);
    let _ = text.parse::<units::Rate>();
    let _ = rootswarm_agent::units::parse_rate(text);
    let _ = args::parse_patience(text);
    let _ = rootswarm_agent::rack::parse(text);
    if let Ok(network) = text.parse::<Cidr>() {
        assert!(network.contains(network.network()));
    }
    if let Ok(host) = text.parse::<HostPort>() {
        assert_eq!(host.to_string().parse::<HostPort>(), Ok(host));
    }
}

pub(crate) fn plan(input: &[u8]) {
    let Some(text) = utf8(input) else { return };
    let path = Path::new("fuzzed.toml");
    match rootswarm_sim::parse_plan(path, text, false, &[]) {
        Ok(_) => {}
        Err(error) => one_line(&error),
    }
}
