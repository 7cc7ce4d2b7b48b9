//! A fuzz target for everything that reads bytes which somebody else wrote.
//!
//! A target is a function from bytes that panics when something does not hold. Besides "no panic"
//! it holds a decoder to its promises: what it accepts, it writes again as the same value, and
//! where the format has one encoding for a value (what is signed or hashed) as the same bytes; and
//! no input makes it hold more memory than [`Target::memory_bytes`].
//!
//! `corpus/NAME/` has inputs for each: some written by hand, some found by the fuzzer because they
//! reach code that no other does, and one for each fault that was ever found. `cargo test` replays
//! them; `cargo xtask fuzz` makes new ones. The formats are judged in `binary`, `text` and
//! `scheduler`.

mod allocation;
mod binary;
mod scheduler;
mod text;

/// Something that reads foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// What it reads, in a few words.
    pub about: &'static str,
    /// The longest input worth making, in bytes.
    pub input_bytes: usize,
    /// The most memory that an input may cost, in bytes.
    pub memory_bytes: u64,
    run: fn(&[u8]),
}

impl Target {
    /// Runs the target.
    ///
    /// # Panics
    /// When one of its promises does not hold for this input: that is what a fuzzer looks for.
    pub fn check(&self, input: &[u8]) {
        if input.len() > self.input_bytes {
            return;
        }
        let peak = allocation::peak_of(|| (self.run)(input));
        assert!(
            peak <= self.memory_bytes,
            "{}: an input of {} bytes cost {peak} bytes of memory: at most {} are allowed",
            self.name,
            input.len(),
            self.memory_bytes
        );
    }
}

const KIB: u64 = 1024;

/// Every target.
pub const TARGETS: &[Target] = &[
    // Hashes are copied once; merging them takes a stack of a few.
    target(
        "manifest",
        "an image's manifest",
        4096,
        64 * KIB,
        binary::manifest,
    ),
    target("tag", "a signed tag", 256, 8 * KIB, binary::tag),
    target(
        "squashfs",
        "a squashfs superblock",
        128,
        KIB,
        binary::squashfs,
    ),
    target(
        "hello",
        "the first control frame",
        4096,
        64 * KIB,
        binary::hello,
    ),
    target(
        "message",
        "a control frame",
        4096,
        128 * KIB,
        binary::message,
    ),
    target(
        "join-request",
        "a newcomer's frame",
        4096,
        64 * KIB,
        binary::join_request,
    ),
    target(
        "join-answer",
        "a seed's answer to it",
        9000,
        128 * KIB,
        binary::join_answer,
    ),
    target(
        "join-source",
        "where a newcomer finds the manifest",
        128,
        8 * KIB,
        binary::join_source,
    ),
    target(
        "certificate",
        "a node's certificate",
        2048,
        64 * KIB,
        binary::certificate,
    ),
    // A node for 300 chunks with up to eight peers, each with a bit field and an address book.
    target(
        "scheduler",
        "frames and streams at a node",
        4096,
        4096 * KIB,
        scheduler::run,
    ),
    target("rooturl", "rooturl=", 2048, 64 * KIB, text::root_url),
    target("name", "an image's name", 128, 8 * KIB, text::name),
    target("key", "a swarm public key", 256, 8 * KIB, text::key),
    target(
        "cmdline",
        "the kernel command line",
        4096,
        512 * KIB,
        text::cmdline,
    ),
    target(
        "agent-conf",
        "the initrd's agent.conf",
        4096,
        128 * KIB,
        text::agent_conf,
    ),
    // toml keeps every key and value in strings and tables of their own.
    target(
        "server-conf",
        "rootswarm.toml",
        4096,
        4096 * KIB,
        text::server_conf,
    ),
    target(
        "tokens",
        "the token file, and a token",
        4096,
        256 * KIB,
        text::tokens,
    ),
    target(
        "agent-status",
        "an agent's status.json",
        4096,
        512 * KIB,
        text::agent_status,
    ),
    target(
        "seed-status",
        "a seed's status document",
        4096,
        512 * KIB,
        text::seed_status,
    ),
    target(
        "range",
        "HTTP's Range and its conditions",
        1024,
        64 * KIB,
        text::range,
    ),
    target(
        "content-range",
        "HTTP's Content-Range",
        256,
        KIB,
        text::content_range,
    ),
    target(
        "quantity",
        "sizes, rates, times, networks",
        256,
        16 * KIB,
        text::quantity,
    ),
    target(
        "plan",
        "a plan of the simulator",
        4096,
        8192 * KIB,
        text::plan,
    ),
];

const fn target(
    name: &'static str,
    about: &'static str,
    input_bytes: usize,
    memory_bytes: u64,
    run: fn(&[u8]),
) -> Target {
    Target {
        name,
        about,
        input_bytes,
        memory_bytes,
        run,
    }
}
