//! The kernel command line, parsed once into a [`BootPlan`]; nothing later looks at text again.
//!
//! Quoting is the kernel's: double quotes keep blanks together, may stand around a value or the
//! whole parameter, and are dropped; parameters after `--` belong to init. Of repeated parameters
//! the last one counts. The command line can tighten trust, never loosen it.

use rootswarm_image::{RootUrl, RootUrlError, SwarmPublicKey};

use crate::args::DEFAULT_PATIENCE;
use crate::baked::{Baked, Settings};
use crate::console;
use crate::exit::{Classified, Exit};
use crate::mount::Mode;
use crate::plan::{self, Anchors, FetchPlan, TrustError};

/// Everything `boot` needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct BootPlan {
    /// What to fetch.
    pub fetch: FetchPlan,
    /// How to make a root of it.
    pub mode: Mode,
    /// Whether a process stays behind and serves peers.
    pub serve: bool,
    /// Said on the console before anything else happens.
    pub warnings: Vec<String>,
}

/// Why the command line cannot be booted from.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CmdlineError {
    /// No `rooturl=`.
    #[error("rooturl= is missing on the kernel command line: add rooturl=swarm://HOST/NAME")]
    NoRootUrl,
    /// `rooturl=` with nothing behind it.
    #[error("rooturl= is empty on the kernel command line: write rooturl=swarm://HOST/NAME")]
    EmptyRootUrl,
    /// A rooturl that makes no sense.
    #[error(transparent)]
    BadRootUrl(#[from] RootUrlError),
    /// Another parameter that makes no sense.
    #[error("{name}=\"{value}\" on the kernel command line: {reason}")]
    BadParameter {
        /// The parameter.
        name: String,
        /// As given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// Understood, and refused.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl Classified for CmdlineError {
    fn exit(&self) -> Exit {
        match self {
            CmdlineError::Trust(error) => error.exit(),
            _ => Exit::BadInput,
        }
    }
}

/// Reads a rooturl, with the reason in one line when it is none.
pub fn parse_rooturl(url: &str) -> Result<RootUrl, CmdlineError> {
    if url.is_empty() {
        return Err(CmdlineError::EmptyRootUrl);
    }
    Ok(url.parse()?)
}

/// Makes the plan from the command line's text and what is baked in.
pub fn plan(text: &str, baked: &Baked) -> Result<BootPlan, CmdlineError> {
    let mut rooturl = None;
    let mut given_key = None;
    let mut token = None;
    let mut line = Settings::default();
    let mut warnings = Vec::new();

    for (name, value) in parameters(text) {
        let bad = |reason: String| CmdlineError::BadParameter {
            name: console::printable(&name),
            value: console::printable(value.as_deref().unwrap_or_default()),
            reason: console::printable(&reason),
        };
        let text = value.as_deref().unwrap_or_default();
        match name.as_str() {
            "rooturl" => rooturl = Some(text.to_owned()),
            "rootdelay" | "ROOTDELAY" => {
                line.set("rootdelay", text).map_err(bad)?;
            }
            "rootswarm.key" => {
                let key: SwarmPublicKey = text
                    .parse()
                    .map_err(|e: rootswarm_image::SwarmPublicKeyError| bad(e.to_string()))?;
                // Elsewhere the last one counts. Here whoever can add to a line could undo it.
                if given_key.is_some_and(|given| given != key) {
                    return Err(bad("another key stands further to the left".to_owned()));
                }
                given_key = Some(key);
            }
            "rootswarm.token" => token = Some(text.to_owned()),
            _ => {
                let Some(setting) = name.strip_prefix("rootswarm.") else {
                    continue;
                };
                let (verify, key) = (line.require_verify, line.require_key);
                let known = line.set(setting, text).map_err(bad)?;
                // For the same reason.
                if verify == Some(true) {
                    line.require_verify = verify;
                }
                if key == Some(true) {
                    line.require_key = key;
                }
                if !known {
                    warnings.push(format!(
                        "unknown parameter {} on the kernel command line",
                        console::printable(&name)
                    ));
                }
            }
        }
    }

    let source = parse_rooturl(&rooturl.ok_or(CmdlineError::NoRootUrl)?)?;
    let baked_settings = &baked.settings;
    let baked_verify = baked_settings.require_verify == Some(true);
    if baked_verify && line.require_verify == Some(false) {
        warnings.push("rootswarm.require-verify=no is ignored: the initrd requires it".to_owned());
    }
    let baked_key = baked_settings.require_key == Some(true);
    if baked_key && line.require_key == Some(false) {
        warnings.push("rootswarm.require-key=no is ignored: the initrd requires it".to_owned());
    }
    let anchors = Anchors {
        require_key: baked_key || line.require_key == Some(true),
        baked: baked.key,
        given: given_key,
        require_verify: baked_verify || line.require_verify == Some(true),
        key_place: baked.key_path.display().to_string(),
    };
    let trust = plan::decide_trust(&source, &anchors)?;
    let mode = line.mode.or(baked_settings.mode).unwrap_or(Mode::Overlay);
    // Only a swarm has peers to serve. A copied root does not need the image any more, and the
    // point of copying is often to have the RAM back, so there serving must be asked for.
    let serve = matches!(source, RootUrl::Swarm { .. })
        && line
            .serve
            .or(baked_settings.serve)
            .unwrap_or(mode != Mode::Copy);
    let fetch = FetchPlan {
        source,
        trust,
        minimum: baked.minimum.clone(),
        patience: line
            .patience
            .or(baked_settings.patience)
            .unwrap_or(DEFAULT_PATIENCE),
        token,
        rack: line.rack.or_else(|| baked_settings.rack.clone()),
        upload_limit_bytes_per_s: line
            .upload_limit_bytes_per_s
            .or(baked_settings.upload_limit_bytes_per_s),
        bind: None,
        // A node has to come up, with another port if need be.
        port: line
            .port
            .or(baked_settings.port)
            .unwrap_or(rootswarm_image::NODE_PORT),
        is_port_required: false,
        http_port: line
            .http_port
            .or(baked_settings.http_port)
            .unwrap_or(rootswarm_image::HTTP_PORT),
    };
    Ok(BootPlan {
        fetch,
        mode,
        serve,
        warnings,
    })
}

/// Splits a command line into parameters: name, and the value if there is a `=`.
fn parameters(text: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    // A blank at the end closes the last word.
    for c in text.chars().chain([' ']) {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                if word == "--" {
                    return found;
                }
                if !word.is_empty() {
                    found.push(split_parameter(&word));
                    word.clear();
                }
            }
            c => word.push(c),
        }
    }
    // An unclosed quote runs to the end, as it does in the kernel.
    let rest = word.trim_end();
    if !rest.is_empty() {
        found.push(split_parameter(rest));
    }
    found
}

fn split_parameter(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::minimum::Minimum;
    use crate::plan::Trust;

    const PIN: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    fn key(digit: char) -> String {
        format!("ed25519:{}", digit.to_string().repeat(64))
    }

    fn baked(key_text: Option<&str>) -> Baked {
        Baked {
            key: key_text.map(|k| k.parse().unwrap()),
            key_path: "/etc/rootswarm/swarm.pub".into(),
            minimum: Minimum::default(),
            settings: Settings::default(),
        }
    }

    #[test]
    fn splitting_is_the_kernels() {
        let check = |text: &str, expected: &[(&str, Option<&str>)]| {
            let expected = expected
                .iter()
                .map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned)))
                .collect::<Vec<_>>();
            assert_eq!(parameters(text), expected, "{text:?}");
        };
        check("", &[]);
        check("quiet\n", &[("quiet", None)]);
        check(
            "a=1  b= c\td=x=y\n",
            &[
                ("a", Some("1")),
                ("b", Some("")),
                ("c", None),
                ("d", Some("x=y")),
            ],
        );
        check(
            "a=\"b c\" \"d=e f\" g",
            &[("a", Some("b c")), ("d", Some("e f")), ("g", None)],
        );
        check("a=1 -- a=2", &[("a", Some("1"))]);
        check("a=\"b c", &[("a", Some("b c"))]);
    }

    #[test]
    fn a_plain_boot() {
        let line = format!("boot=ram rooturl=swarm://10.0.0.1/debian@blake3:{PIN} ip=dhcp");
        let plan = plan(&line, &baked(None)).unwrap();
        assert_eq!(plan.fetch.trust, Trust::Pin(PIN.parse().unwrap()));
        assert_eq!(plan.mode, Mode::Overlay);
        assert_eq!(plan.fetch.patience, Duration::from_secs(180));
        assert!(plan.serve);
        assert_eq!(plan.warnings, Vec::<String>::new());
    }

    #[test]
    fn the_last_one_wins_and_unknown_ones_warn() {
        let line = "rooturl=http://h/x rootswarm.mode=ro rootdelay=9 rooturl=http://h/y \
                    rootswarm.mode=copy ROOTDELAY=30 rootswarm.colour=red quiet ro";
        let plan = plan(line, &baked(None)).unwrap();
        assert_eq!(plan.fetch.source, "http://h/y".parse().unwrap());
        assert_eq!(plan.mode, Mode::Copy);
        assert_eq!(plan.fetch.patience, Duration::from_secs(30));
        assert_eq!(
            plan.warnings,
            ["unknown parameter rootswarm.colour on the kernel command line"]
        );
    }

    #[test]
    fn serving_follows_mode_and_wish() {
        let serve = |options: &str| {
            let line = format!("rooturl=swarm://h/n {options}");
            plan(&line, &baked(Some(&key('1')))).unwrap().serve
        };
        assert!(serve(""));
        assert!(serve("rootswarm.mode=ro"));
        assert!(!serve("rootswarm.mode=copy"));
        assert!(serve("rootswarm.mode=copy rootswarm.serve=yes"));
        assert!(!serve("rootswarm.serve=no"));
        assert!(
            !plan("rooturl=http://h/n rootswarm.serve", &baked(None))
                .unwrap()
                .serve
        );
    }

    /// Every way to be refused, with its one line and its code. A key on the command line alone
    /// vouches for nothing; that is what "tighten, never loosen" means.
    #[test]
    fn refusals() {
        let check = |line: &str, baked: &Baked, exit: Exit, part: &str| {
            let error = plan(line, baked).expect_err(line);
            assert_eq!(error.exit(), exit, "{line}: {error}");
            assert!(error.to_string().contains(part), "{line}: {error}");
            assert!(!error.to_string().contains('\n'), "{line}: one line");
        };
        let none = baked(None);
        let with_key = baked(Some(&key('1')));
        check("quiet", &none, Exit::BadInput, "rooturl= is missing");
        check("rooturl=", &none, Exit::BadInput, "rooturl= is empty");
        check("rooturl", &none, Exit::BadInput, "rooturl= is empty");
        check(
            "rooturl=ftp://h/x",
            &none,
            Exit::BadInput,
            "no scheme that is known",
        );
        check(
            "rooturl=swarm:///x",
            &with_key,
            Exit::BadInput,
            "host is missing",
        );
        check("rooturl=swarm://h/A", &with_key, Exit::BadInput, "A");
        check("rooturl=swarm://h/../x", &with_key, Exit::BadInput, "../x");
        check(
            "rooturl=swarm://h/x@blake3:12",
            &with_key,
            Exit::BadInput,
            "pin",
        );
        check(
            "rooturl=swarm://h/x rootswarm.mode=fast",
            &with_key,
            Exit::BadInput,
            "overlay, ro",
        );
        check(
            "rooturl=swarm://h/x rootswarm.key=1",
            &with_key,
            Exit::BadInput,
            "rootswarm.key=",
        );
        check(
            "rooturl=swarm://h/x rootdelay=soon",
            &with_key,
            Exit::BadInput,
            "rootdelay=",
        );

        check(
            "rooturl=swarm://h/x",
            &none,
            Exit::Refused,
            "nothing says which image to trust",
        );
        let given = format!("rooturl=swarm://h/x rootswarm.key={}", key('1'));
        check(
            &given,
            &none,
            Exit::Refused,
            "nothing says which image to trust",
        );
        let other = format!(
            "rooturl=swarm://h/x@blake3:{PIN} rootswarm.key={}",
            key('2')
        );
        check(&other, &with_key, Exit::Refused, "never move it");
        let verify = "rooturl=http://h/x rootswarm.require-verify";
        check(verify, &none, Exit::Refused, "has no pin");
    }

    /// Found by fuzzing: a quoted value may hold a line break, and its error had two lines.
    #[test]
    fn an_error_is_one_line_whatever_is_quoted() {
        for text in [
            "rootswarm.mode=\"a\nb\"",
            "rootswarm.key=\"\u{1b}[2J\"",
            "rootswarm.upload-limit=\u{10}50Mbit",
        ] {
            let error = plan(text, &baked(None)).unwrap_err().to_string();
            assert!(!error.contains(char::is_control), "{error:?}");
        }
        let line = "rooturl=http://h/x \"rootswarm.a\nb=c\"";
        let warnings = plan(line, &baked(None)).unwrap().warnings;
        assert_eq!(
            warnings,
            ["unknown parameter rootswarm.a\\nb on the kernel command line"]
        );
    }

    #[test]
    fn the_command_line_cannot_loosen() {
        let mut strict = baked(None);
        strict.settings.require_verify = Some(true);
        let loose = "rooturl=http://h/x rootswarm.require-verify=no";
        assert_eq!(plan(loose, &strict).unwrap_err().exit(), Exit::Refused);
        let pinned = format!("rooturl=http://h/x@blake3:{PIN} rootswarm.require-verify=no");
        let plan = plan(&pinned, &strict).unwrap();
        assert_eq!(plan.warnings.len(), 1);
        assert_eq!(plan.fetch.trust, Trust::Pin(PIN.parse().unwrap()));
    }

    /// Whoever bakes a key and asks for it boots only what that key signed, whatever the scheme, and whoever
    /// writes the command line can ask for it as well, and not take it back.
    #[test]
    fn a_key_that_is_required_must_have_signed_the_image() {
        let pinned = format!("@blake3:{PIN}");
        for (url, signed) in [
            ("swarm://h/x", true),
            ("http://h:7480/images/x", true),
            ("http://[fd00::1]/images/x.2", true),
            ("http://h/x", false),
            ("http://h/x.squashfs", false),
            ("http://h/images/", false),
            ("http://h/images/a/b", false),
            ("http://h/images/x?y", false),
        ] {
            for pin in ["", &pinned] {
                for (conf, line) in [(true, ""), (true, "=no"), (false, ""), (false, "=yes =no")] {
                    let mut initrd = baked(Some(&key('1')));
                    initrd.settings.require_key = conf.then_some(true);
                    let options: String = line
                        .split_whitespace()
                        .chain((!conf && line.is_empty()).then_some(""))
                        .map(|value| format!(" rootswarm.require-key{value}"))
                        .collect();
                    let text = format!("rooturl={url}{pin}{options}");
                    let case = format!("{text} with {conf}");
                    match plan(&text, &initrd) {
                        Ok(plan) => {
                            assert!(signed, "{case}");
                            let expected = Trust::Key {
                                key: key('1').parse().unwrap(),
                                pin: (!pin.is_empty()).then(|| PIN.parse().unwrap()),
                            };
                            assert_eq!(plan.fetch.trust, expected, "{case}");
                        }
                        Err(error) => {
                            assert!(!signed, "{case}: {error}");
                            assert_eq!(error.exit(), Exit::Refused, "{case}: {error}");
                            assert!(error.to_string().contains("is required"), "{case}: {error}");
                        }
                    }
                    // Without a key in the initrd nothing can be signed by it, whatever the line gives.
                    initrd.key = None;
                    let given = format!("{text} rootswarm.key={}", key('2'));
                    for text in [&text, &given] {
                        assert!(plan(text, &initrd).is_err(), "{text}");
                    }
                }
            }
        }
    }

    /// What an image is held to: a key, a pin; nothing at all is no plan.
    fn anchors(line: &str, baked: &Baked) -> Option<(Option<String>, Option<String>)> {
        let trust = plan(line, baked).ok()?.fetch.trust;
        Some(match trust {
            Trust::Key { key, pin } => (Some(key.to_string()), pin.map(|pin| pin.to_string())),
            Trust::Pin(pin) => (None, Some(pin.to_string())),
            Trust::Unverified => (None, None),
        })
    }

    /// Every initrd, every rooturl, every option: with one more of them what was refused stays so,
    /// and what an image was held to it is still held to.
    #[test]
    fn an_option_more_never_loosens() {
        let options = [
            format!("rootswarm.key={}", key('1')),
            format!("rootswarm.key={}", key('2')),
            "rootswarm.require-verify=yes".to_owned(),
            "rootswarm.require-verify=no".to_owned(),
            "rootswarm.require-key=yes".to_owned(),
            "rootswarm.require-key=no".to_owned(),
            "rootswarm.mode=ro".to_owned(),
            "rootswarm.token=t".to_owned(),
        ];
        let (mut kept, mut tightened) = (0, 0);
        for baked_key in [None, Some(key('1'))] {
            for (require_verify, require_key) in [
                (None, None),
                (Some(false), None),
                (Some(true), None),
                (None, Some(false)),
                (Some(true), Some(true)),
                (None, Some(true)),
            ] {
                let mut baked = baked(baked_key.as_deref());
                baked.settings.require_verify = require_verify;
                baked.settings.require_key = require_key;
                for url in ["swarm://h/x", "http://h/x", "http://h/images/x"] {
                    for pin in ["".to_owned(), format!("@blake3:{PIN}")] {
                        // All sets of options.
                        for chosen in 0..1_u32 << options.len() {
                            let line = |chosen: u32| {
                                let is_in = |at: &usize| chosen & (1 << at) != 0;
                                let chosen = (0..options.len()).filter(is_in);
                                let chosen = chosen.map(|at| format!(" {}", options[at]));
                                format!("rooturl={url}{pin}{}", chosen.collect::<String>())
                            };
                            let before = anchors(&line(chosen), &baked);
                            for more in (0..options.len()).filter(|at| chosen & (1 << at) == 0) {
                                let line = line(chosen | 1 << more);
                                let after = anchors(&line, &baked);
                                let Some((key, pin)) = &after else {
                                    tightened += u32::from(before.is_some());
                                    continue;
                                };
                                let what = format!("{line} with {baked:?}");
                                let Some((old_key, old_pin)) = &before else {
                                    panic!("not refused any more: {what}");
                                };
                                assert!(old_key.is_none() || old_key == key, "{what}");
                                assert!(old_pin.is_none() || old_pin == pin, "{what}");
                                kept += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(
            kept > 0 && tightened > 0,
            "{kept} kept, {tightened} tightened"
        );
    }

    #[test]
    fn a_given_key_narrows_a_pin() {
        let line = format!(
            "rooturl=swarm://h/x@blake3:{PIN} rootswarm.key={}",
            key('1')
        );
        let expected = Trust::Key {
            key: key('1').parse().unwrap(),
            pin: Some(PIN.parse().unwrap()),
        };
        assert_eq!(plan(&line, &baked(None)).unwrap().fetch.trust, expected);
        let unverified = plan("rooturl=http://h/x", &baked(Some(&key('1')))).unwrap();
        assert_eq!(unverified.fetch.trust, Trust::Unverified);
    }
}
