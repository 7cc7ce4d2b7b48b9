//! Names, ids and rooturls: what is read, what is refused, and in which words.

use proptest::prelude::*;
use rootswarm_image::{
    HTTP_PORT, Host, HostPort, ImageId, ImageName, RootUrl, SWARM_PORT, WEB_PORT,
};

const HEX: &str = "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085";

fn refusal(text: &str) -> String {
    match text.parse::<RootUrl>() {
        Ok(url) => panic!("{text} was read as {url:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_good_rooturl_is_read_and_written_back() {
    let pinned = |text: &str| format!("{text}@blake3:{HEX}");
    let long_label = format!("swarm://{}.example/n", "a".repeat(63));
    let long_name = format!("swarm://h/{}", "n".repeat(64));
    let long_host = format!("swarm://{}h/n", "a.".repeat(126));
    let sixteen = format!("swarm://h{}/n", ",h".repeat(15));
    for text in [
        "swarm://10.0.0.1/debian",
        "swarm://10.0.0.1:7401/debian",
        "swarm://10.0.0.1:1,10.0.0.2:65535/debian",
        "swarm://pxe/debian-13.2_amd64.squashfs",
        "swarm://pxe.example.org,10.0.0.1,[2001:db8::1]:9/a",
        "swarm://[::1]/a",
        "swarm://[fe80::1]:7400/...",
        "swarm://_pxe._udp.example/-a",
        "swarm://3com.example/a",
        "swarm://0x7f.example/a",
        &long_label,
        &long_name,
        &long_host,
        &sixteen,
        "http://10.0.0.1/",
        "http://10.0.0.1/images/debian.squashfs",
        "http://pxe:8080/a/../b//c?x=1&y=2%20",
        "http://[2001:db8::1]:80/root.squashfs",
        "http://h/images/Debian%40home.SQUASHFS",
    ] {
        for text in [text.to_owned(), pinned(text)] {
            let url: RootUrl = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), text);
            let pin = url.pin().map(ImageId::to_string);
            assert_eq!(pin.as_deref(), text.ends_with(HEX).then_some(HEX));
        }
    }
}

#[test]
fn what_is_written_in_several_ways_is_read_as_one() {
    for (text, canonical) in [
        ("SWARM://PXE.Example/n", "swarm://pxe.example/n"),
        ("swarm://h:07400/n", "swarm://h:7400/n"),
        ("swarm://[2001:DB8:0:0::1]/n", "swarm://[2001:db8::1]/n"),
        ("HTTP://H", "http://h/"),
        ("http://h?x", "http://h/?x"),
        (
            &format!("http://h@blake3:{HEX}"),
            &format!("http://h/@blake3:{HEX}"),
        ),
    ] {
        let url: RootUrl = text.parse().expect("a rooturl");
        assert_eq!(url.to_string(), canonical, "{text}");
        assert_eq!(canonical.parse(), Ok(url));
    }
}

#[test]
fn the_parts_of_a_rooturl_are_where_they_belong() {
    let text = format!("swarm://10.0.0.1,[::1]:9,pxe:80/debian@blake3:{HEX}");
    let Ok(RootUrl::Swarm { hosts, name, pin }) = text.parse() else {
        panic!("{text}");
    };
    let ports: Vec<_> = hosts.iter().map(|host| host.port_or(SWARM_PORT)).collect();
    assert_eq!(ports, [7400, 9, 80]);
    assert!(matches!(hosts[0].host, Host::V4(address) if address.octets() == [10, 0, 0, 1]));
    assert!(matches!(hosts[1].host, Host::V6(address) if address.is_loopback()));
    assert!(matches!(&hosts[2].host, Host::Name(name) if name.as_str() == "pxe"));
    assert_eq!(name.as_str(), "debian");
    assert_eq!(pin.map(|pin| pin.to_string()).as_deref(), Some(HEX));

    let text = format!("http://pxe:8080/a/b?c@blake3:{HEX}");
    let Ok(RootUrl::Http { url, pin }) = text.parse() else {
        panic!("{text}");
    };
    assert_eq!(url.server().to_string(), "pxe:8080");
    assert_eq!((url.port(), url.path()), (8080, "/a/b?c"));
    assert!(pin.is_some());

    let Ok(RootUrl::Http { url, .. }) = "http://pxe/x".parse() else {
        panic!("a plain URL");
    };
    assert_eq!((url.port(), WEB_PORT, HTTP_PORT), (80, 80, 7480));
}

#[test]
fn a_bad_rooturl_is_refused_in_one_clear_line() {
    let short = &HEX[1..];
    let upper = HEX.to_uppercase();
    let seventeen = format!("swarm://h{}/n", ",h".repeat(16));
    let too_long = format!("http://h/{}", "a".repeat(1016));
    let longer_when_written = format!("http://h?{}", "a".repeat(1015));
    let long_label = format!("swarm://{}/n", "a".repeat(64));
    let long_name = format!("swarm://h/{}", "n".repeat(65));
    let long_host = format!("swarm://{}h4/n", "a.".repeat(126));
    for (text, expected) in [
        (
            "",
            "has no scheme that is known: expected swarm://HOST/NAME or http://HOST/PATH",
        ),
        ("debian", "rooturl \"debian\" has no scheme"),
        ("swarm:10.0.0.1/debian", "has no scheme"),
        ("ftp://h/n", "rooturl \"ftp://h/n\" has no scheme"),
        (
            "https://h/n",
            "is https: expected http:// with the image pinned as @blake3:HEX",
        ),
        (&too_long, "rooturl has 1025 bytes: expected at most 1024"),
        (
            &longer_when_written,
            "rooturl has 1025 bytes: expected at most 1024",
        ),
        (
            "swarm://h/a b",
            "rooturl has the character ' ': expected visible ASCII",
        ),
        ("swarm://h/a\n", "rooturl has the character '\\n'"),
        ("swarm://h/\u{1b}[2J", "rooturl has the character '\\u{1b}'"),
        ("http://h/\u{e4}", "rooturl has the character '\u{e4}'"),
        (
            "swarm://",
            "rooturl \"swarm://\" names no image: expected swarm://HOST/NAME",
        ),
        ("swarm://h", "names no image"),
        (
            "swarm:///n",
            "host is missing: expected an address or a name",
        ),
        ("swarm://h,/n", "host is missing"),
        ("swarm://,h/n", "host is missing"),
        ("swarm://:7400/n", "host is missing"),
        (
            "swarm://h/",
            "image name is empty: expected 1 to 64 of a-z 0-9 . _ -",
        ),
        ("swarm://h/.", "image name \".\" is a directory"),
        ("swarm://h/..", "image name \"..\" is a directory"),
        ("swarm://h/a/b", "image name \"a/b\" has the character '/'"),
        (
            "swarm://h/../../etc/shadow",
            "has the character '/': expected only a-z 0-9 . _ -",
        ),
        (
            "swarm://h/Debian",
            "image name \"Debian\" has the character 'D'",
        ),
        ("swarm://h/a%2fb", "has the character '%'"),
        ("swarm://h/a?b", "has the character '?'"),
        ("swarm://h/a#b", "has the character '#'"),
        (&long_name, "image name has 65 bytes: expected at most 64"),
        (&seventeen, "rooturl names 17 hosts: expected at most 16"),
        (
            "swarm://10.0.0/n",
            "host \"10.0.0\" is no IPv4 address: expected four numbers",
        ),
        (
            "swarm://10.0.0.256/n",
            "host \"10.0.0.256\" is no IPv4 address",
        ),
        ("swarm://10.0.0.01/n", "is no IPv4 address"),
        ("swarm://10.0.0.1.2/n", "is no IPv4 address"),
        ("swarm://167772161/n", "is no IPv4 address"),
        (
            "swarm://2001:db8::1/n",
            "expected an IPv6 address in brackets, [2001:db8::1]",
        ),
        ("swarm://h:1:2/n", "has several colons"),
        (
            "swarm://[::1/n",
            "host \"[::1\": expected [IPV6] or [IPV6]:PORT",
        ),
        ("swarm://[::1]7400/n", "expected [IPV6] or [IPV6]:PORT"),
        ("swarm://[]/n", "host [] is no IPv6 address"),
        ("swarm://[10.0.0.1]/n", "host [10.0.0.1] is no IPv6 address"),
        ("swarm://[fe80::1%eth0]/n", "without an interface"),
        (
            "swarm://[::1]:/n",
            "port \"\" of host [::1]: expected a number from 1 to 65535",
        ),
        ("swarm://h:/n", "port \"\" of host h"),
        ("swarm://h:0/n", "port \"0\" of host h"),
        ("swarm://h:65536/n", "port \"65536\" of host h"),
        ("swarm://h:+80/n", "port \"+80\" of host h"),
        ("swarm://h:http/n", "port \"http\" of host h"),
        ("swarm://a..b/n", "host \"a..b\" is no host name"),
        ("swarm://-a/n", "is no host name"),
        ("swarm://a-/n", "is no host name"),
        ("swarm://a*b/n", "is no host name"),
        (&long_label, "is no host name"),
        (&long_host, "at most 253 characters in all"),
        (
            "swarm://user@h/n",
            "rooturl has a user in front of host \"h\": expected no user",
        ),
        (
            "http://user:secret@h/n",
            "a user in front of host \"h\": expected no user",
        ),
        ("http:///n", "host is missing"),
        ("http://", "host is missing"),
        (
            "http://h/n#part",
            "rooturl has the fragment \"#part\": expected none",
        ),
        (
            "swarm://h/n@",
            "rooturl has \"@\" where its pin should be: expected @blake3:HEX",
        ),
        (
            "swarm://h/n@sha256:00",
            "rooturl has \"@sha256:00\" where its pin should be",
        ),
        ("http://h/n@sha256:00", "(write a plain @ as %40)"),
        (
            "http://h/a@b/n",
            "rooturl has \"@b/n\" where its pin should be",
        ),
        ("http://h/n@BLAKE3:00", "where its pin should be"),
        (
            "swarm://h/n@blake3:",
            "pin: image id: expected 64 lower-case hexadecimal digits",
        ),
        (
            &format!("swarm://h/n@blake3:{short}"),
            "found 63 characters",
        ),
        (&format!("swarm://h/n@blake3:{HEX}0"), "found 65 characters"),
        (
            &format!("swarm://h/n@blake3:{upper}"),
            "found the character 'B'",
        ),
        (
            &format!("http://h/n@blake3:{HEX}@blake3:{HEX}"),
            "found the character '@'",
        ),
        (
            &format!("http://h/n@blake3:{HEX}?x"),
            "found the character '?'",
        ),
    ] {
        let message = refusal(text);
        assert!(
            message.contains(expected),
            "{text}\n found: {message}\n wants: {expected}"
        );
        assert!(
            message.contains("rooturl"),
            "{text}: does not say what it is about: {message}"
        );
        assert!(
            !message.contains(['\n', '\r', '\u{1b}']),
            "{text}: more than a line: {message:?}"
        );
    }
}

#[test]
fn a_name_is_one_of_few_characters() {
    for good in [
        "a",
        "0",
        "-",
        "_",
        "...",
        ".a",
        "debian-13.2_amd64",
        &"n".repeat(64),
    ] {
        let name: ImageName = good.parse().expect("a name");
        assert_eq!((name.as_str(), name.to_string().as_str()), (good, good));
    }
    for bad in [
        "",
        ".",
        "..",
        "A",
        "a b",
        "a/b",
        "/",
        "a\0",
        "\u{e4}",
        "a\n",
        "~",
        &"n".repeat(65),
    ] {
        assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
    }
}

#[test]
fn an_id_is_written_in_one_way() {
    let id: ImageId = HEX.parse().expect("an id");
    assert_eq!(id.to_string(), HEX);
    assert_eq!(ImageId::from_bytes(*id.as_bytes()), id);
    let every_byte: String = (0..32)
        .map(|byte| format!("{:02x}", byte * 8 + 7))
        .collect();
    assert_eq!(
        every_byte.parse::<ImageId>().map(|id| id.to_string()),
        Ok(every_byte)
    );
    for bad in [
        "",
        " ",
        &HEX[1..],
        &HEX.to_uppercase(),
        &format!("0x{}", &HEX[2..]),
        "\u{e4}",
    ] {
        assert!(bad.parse::<ImageId>().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_or_written_back_so_that_it_reads_the_same(
        text in prop_oneof![
            any::<String>(),
            "(swarm|http)://[a-z0-9.:,\\[\\]@-]{0,12}/[a-z/@:?._-]{0,9}(@blake3:[0-9a-f]{63,65})?",
        ],
    ) {
        if let Ok(url) = text.parse::<RootUrl>() {
            prop_assert_eq!(url.to_string().parse(), Ok(url));
        }
        if let Ok(host) = text.parse::<HostPort>() {
            prop_assert_eq!(host.to_string().parse(), Ok(host));
        }
    }

    #[test]
    fn a_name_is_exactly_what_the_rule_says(text in "[ -~]{0,3}|[a-z0-9._-]{0,70}|\\PC{0,4}") {
        let of_few = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(of_few)
            && text != "."
            && text != "..";
        prop_assert_eq!(text.parse::<ImageName>().is_ok(), good);
    }
}
