//! Bad input to both programs, against each other: one clear line, its own exit code, nothing
//! half-done left behind. The codes are a promise to scripts; this table is where they are kept.
//!
//! What each program says about its own arguments in every detail is in its own tests. Mounts need
//! root.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rootswarm_tests::keeper::{self, Kept};
use rootswarm_tests::scenario::scenario;
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Place, Seed, programs};

const MB: u64 = 1_000_000;
const PIN: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
const KEY: &str = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
/// A refusal that takes this long hangs.
const LIMIT_S: &str = "60";

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Runs a program to its end; one that hangs is ended and fails with code 124.
fn run(program: &Path, args: &[&OsStr]) -> Fallible<(Option<i32>, String)> {
    let mut command = Place::loopback().command(Path::new("timeout"));
    command.arg(LIMIT_S).arg(program).args(args);
    let output = command.stdin(Stdio::null()).output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

/// `program ARGS` ends with `code` and one line, its last, that holds `part`.
fn refuses(program: &Path, args: &[&OsStr], code: i32, part: &str) -> Fallible {
    let (found, stderr) = run(program, args)?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    let shown = format!("{name} {}: {stderr}", words.join(" "));
    assert_eq!(found, Some(code), "{shown}");
    let mut lines: Vec<&str> = stderr.lines().collect();
    let last = lines.pop().unwrap_or_default();
    assert!(
        last.starts_with(&format!("{name}: ")),
        "whose line is that? {shown}"
    );
    assert!(last.contains(part), "expected \"{part}\" in {shown}");
    // Before it may stand what happened on the way, each line with a name in front: no backtrace,
    // no second error.
    assert!(
        lines.iter().all(|line| line.starts_with("rootswarm: ")),
        "{shown}"
    );
    Ok(())
}

fn words<'a>(line: &'a str, rest: &[&'a Path]) -> Vec<&'a OsStr> {
    line.split_whitespace()
        .map(OsStr::new)
        .chain(rest.iter().map(|path| path.as_os_str()))
        .collect()
}

/// Every file below a directory with its length: what must be the same after a refusal.
fn tree(directory: &Path) -> Fallible<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else {
                found.insert(entry.path(), entry.metadata()?.len());
            }
        }
    }
    Ok(found)
}

/// A small file system that is gone with this value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf, bytes: u64) -> Fallible<Self> {
        fs::create_dir_all(&path)?;
        keeper::register(Kept::Mount(&path))?;
        let size = format!("size={bytes},mode=755");
        let mut mount = Command::new("mount");
        let status = mount
            .args(["-t", "tmpfs", "-o", &size, "rootswarm-test"])
            .arg(&path)
            .status()?;
        assert!(
            status.success(),
            "cannot mount a tmpfs (this test needs root)"
        );
        Ok(Tmpfs(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn rooturls_are_refused_by_fetch_and_boot_alike() {
    scenario(MB, |directory| {
        let agent = &programs()?.agent;
        let long = format!("swarm://h/{}", "n".repeat(65));
        let other_hash = format!("swarm://h/x@md5:{PIN}");
        let no_anchor = "swarm://127.0.0.1/x";
        for (number, (url, code, part)) in [
            ("", 2, "empty"),
            ("10.0.0.1/x", 2, "scheme"),
            ("ftp://10.0.0.1/x", 2, "scheme"),
            ("swarm:///x", 2, "host"),
            ("swarm://300.0.0.1/x", 2, "300.0.0.1"),
            ("swarm://[fe80::1/x", 2, "fe80"),
            ("swarm://h:0x/x", 2, "port"),
            ("swarm://h", 2, "image"),
            ("swarm://h/UPPER", 2, "UPPER"),
            ("swarm://h/../etc", 2, ".."),
            (&long, 2, "name"),
            ("swarm://h/x@blake3:1234", 2, "pin"),
            (&other_hash, 2, "pin"),
            (no_anchor, 3, "trust"),
        ]
        .into_iter()
        .enumerate()
        {
            let own = directory.join(number.to_string());
            let path = |name: &str| own.join(name);
            fs::create_dir_all(&own)?;
            fs::write(
                path("cmdline"),
                format!("boot=ram ROOTDELAY=2 rooturl={url} quiet\n"),
            )?;
            let before = tree(&own)?;
            let (image, conf, cmdline, root) =
                (path("image"), path("conf"), path("cmdline"), path("root"));
            let fetch = ["fetch", url, "--timeout", "1", "--output"].map(OsStr::new);
            let fetch = [
                &fetch[..],
                &[image.as_os_str(), "--conf".as_ref(), conf.as_os_str()],
            ]
            .concat();
            refuses(agent, &fetch, code, part)?;
            let (run_dir, mnt) = (path("run"), path("mnt"));
            let boot = [
                OsStr::new("boot"),
                "--rootmnt".as_ref(),
                root.as_os_str(),
                "--cmdline".as_ref(),
                cmdline.as_os_str(),
                "--run-dir".as_ref(),
                run_dir.as_os_str(),
                "--conf".as_ref(),
                conf.as_os_str(),
                "--mnt".as_ref(),
                mnt.as_os_str(),
            ];
            refuses(agent, &boot, code, part)?;
            // The reason is kept for the boot script, which shows it; nothing else is.
            let note = fs::read_to_string(path("run.error"))?;
            assert!(note.contains(part), "{url}: {note}");
            fs::remove_file(path("run.error"))?;
            assert_eq!(tree(&own)?, before, "{url} left something behind");
        }
        // No rooturl at all.
        let cmdline = directory.join("cmdline");
        fs::write(&cmdline, "boot=ram quiet\n")?;
        let run_dir = directory.join("run");
        let mut boot = words("boot --rootmnt /nonexistent --cmdline", &[&cmdline]);
        boot.extend(words("--run-dir", &[&run_dir]));
        refuses(agent, &boot, 2, "rooturl= is missing")
    });
}

#[test]
fn what_a_seed_does_not_give_is_named() {
    scenario(50 * MB, |directory| {
        let agent = &programs()?.agent;
        let image = directory.join("source");
        source::write(&image, 2 * MB, 1)?;
        let place = Place::loopback();
        let mut seed = Seed::start(place, directory, &[("debian", &image)], &[])?;
        let url = seed.url("debian")?;
        let address = seed.address;
        let no_conf = directory.join("no-conf");
        let full = Tmpfs::mount(directory.join("full"), MB)?;
        // Two sockets cannot have one address; the second is the agent's.
        let taken = UdpSocket::bind((Place::loopback().address, 0))?;
        let taken = taken.local_addr()?;
        let room = directory.join("room");
        fs::create_dir(&room)?;

        let unknown = format!("fetch swarm://{address}/nosuch@blake3:{PIN}");
        let wrong_pin = format!("fetch swarm://{address}/debian@blake3:{PIN}");
        let other_key = format!("fetch {url} --key {KEY}");
        let other_key_unpinned = format!("fetch swarm://{address}/debian --key {KEY}");
        let silent = format!(
            "fetch swarm://{}/debian@blake3:{PIN}",
            Place::loopback().address
        );
        let busy_port = format!("fetch {url} --bind {} --port {}", taken.ip(), taken.port());
        let no_room = format!("fetch {url}");
        for (line, output, code, part) in [
            (&unknown, &room, 6, "no image of that name"),
            (&wrong_pin, &room, 3, "pin"),
            (&other_key, &room, 3, "key"),
            (&other_key_unpinned, &room, 3, "key"),
            (&silent, &room, 4, "gave up"),
            (&busy_port, &room, 8, "in use"),
            (&no_room, &full.0, 5, "1.0 MB free"),
        ] {
            let output_file = output.join("image");
            let mut args = words(line, &[]);
            args.extend(words("--timeout 2 --conf", &[&no_conf]));
            args.extend(words("--output", &[&output_file]));
            refuses(agent, &args, code, part)?;
            assert_eq!(
                tree(output)?,
                BTreeMap::new(),
                "{line} left something behind"
            );
        }
        drop(full);
        Ok(())
    });
}

/// Answers every request with the headers of an image of 2^50 bytes, and nothing after them.
struct HugeImage {
    address: std::net::SocketAddr,
    end: Arc<AtomicBool>,
}

impl HugeImage {
    fn serve() -> Fallible<Self> {
        let listener = TcpListener::bind((Place::loopback().address, 0))?;
        let address = listener.local_addr()?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.read(&mut [0; 4096]);
                let length = 1_u64 << 50;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
            }
        });
        Ok(HugeImage { address, end })
    }
}

impl Drop for HugeImage {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Wakes the thread up.
        let _ = std::net::TcpStream::connect(self.address);
    }
}

#[test]
fn what_cannot_become_a_root_leaves_no_mount() {
    scenario(50 * MB, |directory| {
        let agent = &programs()?.agent;
        let image = directory.join("source");
        source::write(&image, 2 * MB, 1)?;
        let mut seed = Seed::start(Place::loopback(), directory, &[("debian", &image)], &[])?;
        let huge = HugeImage::serve()?;
        let no_squashfs = seed.url("debian")?;
        let too_large = format!("http://{}/image", huge.address);
        for (number, (url, mode, code, part)) in [
            (&no_squashfs, "overlay", 7, "squashfs"),
            (&no_squashfs, "ro", 7, "squashfs"),
            (&no_squashfs, "copy", 7, "squashfs"),
            (&too_large, "overlay", 5, "RAM"),
        ]
        .into_iter()
        .enumerate()
        {
            let own = directory.join(format!("boot{number}"));
            fs::create_dir_all(own.join("root"))?;
            let cmdline = format!("boot=ram ROOTDELAY=3 rooturl={url} rootswarm.mode={mode}\n");
            fs::write(own.join("cmdline"), cmdline)?;
            // In a mount namespace of its own, so that what it might leave behind goes with it; the
            // shell looks at that before it does.
            let script = format!(
                "cd {own} && {agent} boot --rootmnt {own}/root --cmdline {own}/cmdline \
                 --run-dir {own}/run --conf {own}/conf --mnt {own}/mnt; code=$?; \
                 if grep -q {own} /proc/self/mountinfo; then echo a mount is left >&2; exit 99; fi; \
                 exit $code",
                own = own.display(),
                agent = agent.display(),
            );
            let line = ["--mount", "sh", "-c", &script].map(OsStr::new);
            let (found, stderr) = run(Path::new("unshare"), &line)?;
            assert_eq!(found, Some(code), "{url} {mode}: {stderr}");
            let last = stderr.lines().last().unwrap_or_default();
            assert!(
                last.starts_with("rootswarm-agent: ") && last.contains(part),
                "{stderr}"
            );
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_published_changes_nothing() {
    scenario(400 * MB, |directory| {
        let server = &programs()?.server;
        let path = |name: &str| directory.join(name);
        let (state, good) = (path("state"), path("good"));
        source::write(&good, 2 * MB, 1)?;
        let publish = |name: &str, file: &Path| -> Vec<std::ffi::OsString> {
            let mut args: Vec<std::ffi::OsString> = vec!["publish".into(), "--quiet".into()];
            args.extend(["--state".into(), state.clone().into()]);
            args.extend([name.into(), file.into()]);
            args
        };
        let first = publish("debian", &good);
        let first: Vec<&OsStr> = first.iter().map(AsRef::as_ref).collect();
        assert_eq!(run(server, &first)?.0, Some(0));
        let before = tree(&state)?;

        // The superblock of a squashfs that should be twice as long: magic, and bytes_used at 40.
        let cut_off = path("cut-off");
        let mut bytes = fs::read(&good)?;
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[28..30].copy_from_slice(&4_u16.to_le_bytes());
        bytes[40..48].copy_from_slice(&(4 * MB).to_le_bytes());
        fs::write(&cut_off, &bytes)?;
        for (name, file, code, part) in [
            ("debian", path("nosuch"), 2, "nosuch"),
            ("debian", directory.to_owned(), 2, "directory"),
            ("UPPER", good.clone(), 2, "UPPER"),
            ("..", good.clone(), 2, ".."),
            ("debian", cut_off, 10, "cut off"),
        ] {
            let args = publish(name, &file);
            let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
            refuses(server, &args, code, part)?;
            assert_eq!(
                tree(&state)?,
                before,
                "{name} {} changed the state",
                file.display()
            );
        }

        // A file that grows while it is read: a writer appends all the time.
        let growing = path("growing");
        source::write(&growing, 64 * MB, 2)?;
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| -> Fallible {
            let writer = scope.spawn(|| -> std::io::Result<()> {
                let mut file = fs::OpenOptions::new().append(true).open(&growing)?;
                while !end.load(Ordering::Relaxed) {
                    file.write_all(&[7; 512])?;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                Ok(())
            });
            let args = publish("debian", &growing);
            let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
            let refused = refuses(server, &args, 10, "changed while it was read");
            end.store(true, Ordering::Relaxed);
            writer.join().map_err(|_| "the writer panicked")??;
            refused
        })?;
        assert_eq!(tree(&state)?, before, "the growing file changed the state");

        // Names that are not there.
        for line in ["remove nosuch", "tag new nosuch"] {
            let mut args = words(line, &[]);
            args.extend(words("--state", &[&state]));
            refuses(server, &args, 6, "nosuch")?;
        }
        Ok(())
    });
}

#[test]
fn a_full_state_disk_keeps_what_was_published() {
    scenario(50 * MB, |directory| {
        let server = &programs()?.server;
        let disk = Tmpfs::mount(directory.join("disk"), 4 << 20)?;
        let (small, large) = (directory.join("small"), directory.join("large"));
        source::write(&small, MB, 1)?;
        source::write(&large, 8 * MB, 2)?;
        let state = disk.0.join("state");
        let publish = |file| {
            let mut args = words("publish --quiet debian", &[file]);
            args.extend(words("--state", &[&state]));
            args
        };
        assert_eq!(run(server, &publish(&small))?.0, Some(0));
        let before = tree(&state)?;
        refuses(server, &publish(&large), 5, "no space")?;
        assert_eq!(tree(&state)?, before);
        // The old image is served as if nothing had been tried.
        let mut seed = Seed::start(Place::loopback(), &disk.0, &[], &[])?;
        let id = blake3::hash(&fs::read(&small)?).to_hex();
        assert!(seed.url("debian")?.ends_with(id.as_str()));
        drop(seed);
        drop(disk);
        Ok(())
    });
}

#[test]
fn a_server_that_cannot_serve_says_why() {
    scenario(50 * MB, |directory| {
        let server = &programs()?.server;
        let image = directory.join("source");
        source::write(&image, 2 * MB, 1)?;
        let place = Place::loopback();
        let mut seed = Seed::start(place, directory, &[("debian", &image)], &[])?;
        let state = seed.state().to_owned();
        let other = directory.join("other");
        let address = place.address;
        let serve = |line: &str, state: &Path, code, part| {
            let line = format!("serve {line}");
            let mut args = words(&line, &[]);
            args.extend(words("--state", &[state]));
            refuses(server, &args, code, part)
        };
        let free = Place::loopback().address;
        let both = |swarm: &str, http: &str| format!("--listen {swarm} --http {http}");
        let (swarm, http) = (format!("{address}:7400"), format!("{address}:7480"));
        let any = format!("{free}:0");
        serve(&both(&swarm, &any), &other, 8, "7400")?;
        serve(&both(&any, &http), &other, 8, "7480")?;
        serve(&both(&any, &any), &state, 8, "already served")?;
        serve("--listen nowhere", &other, 2, "nowhere")?;
        serve("--upload-limit fast", &other, 2, "fast")?;
        serve("debian", &other, 2, "NAME=FILE")?;

        seed.process.terminate(rootswarm_tests::swarm::STOP_GRACE)?;
        let mut status = words("status --state", &[&state]);
        refuses(server, &status, 4, "no server answers")?;
        status.pop();

        // A key that others can read.
        use std::os::unix::fs::PermissionsExt as _;
        let key = state.join("swarm.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
        serve(&both(&any, &any), &state, 3, "0600")?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;

        // One flipped bit in the copy that would be served.
        let copy = tree(&state.join("images"))?;
        let copy = copy
            .keys()
            .find(|path| path.ends_with("image"))
            .ok_or("no copy")?;
        fs::set_permissions(copy, fs::Permissions::from_mode(0o644))?;
        let mut bytes = fs::read(copy)?;
        bytes[MB as usize] ^= 1;
        fs::write(copy, bytes)?;
        serve(&both(&any, &any), &state, 9, "damaged")
    });
}
