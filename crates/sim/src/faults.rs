//! What goes wrong on purpose, and counters that prove that it did.

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// At this time.
    AtUs(u64),
    /// Once the seed has sent this many copies of the image.
    SeedCopies(f64),
}

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Who {
    /// This share of all nodes, drawn by chance.
    Share(f64),
    /// The first few: those that hold the image from the start, or that do not come late.
    First(usize),
}

impl Who {
    /// How many of so many nodes.
    pub fn count(self, nodes: usize) -> usize {
        match self {
            Who::Share(share) => (share * nodes as f64).round() as usize,
            Who::First(first) => first.min(nodes),
        }
    }
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The seed's process dies without a word.
    SeedKilled {
        /// When.
        when: When,
        /// It is started again so much later.
        back_after_us: Option<u64>,
    },
    /// These nodes die without a word.
    Vanish {
        /// Which.
        who: Who,
        /// When.
        when: When,
    },
    /// These nodes stop (SIGSTOP): connections stay up, nothing is answered.
    Freeze {
        /// Which.
        who: Who,
        /// When.
        when: When,
        /// They go on so much later.
        for_us: Option<u64>,
    },
    /// These nodes send chunks that do not match their hash.
    Corrupt {
        /// The share of all nodes.
        share: f64,
        /// The share of their chunks.
        chunks: f64,
    },
    /// These nodes announce every chunk, whatever they hold.
    Lie {
        /// The share of all nodes.
        share: f64,
        /// Whether they leave requests unanswered for what they lack; otherwise they say `Busy`.
        silent: bool,
    },
    /// Dials that come to nothing.
    LostDials {
        /// Their share.
        share: f64,
        /// The share of the nodes that have such dials, whichever side dials.
        nodes: f64,
        /// From then on none of them does: handshakes cost processor time, and a crowd's are over at last.
        until_us: u64,
    },
    /// These nodes have a firewall.
    Firewall {
        /// The share of all nodes.
        share: f64,
        /// Whether it lets in what answers the node's own packets; otherwise nothing but the seed's.
        answers: bool,
    },
    /// These nodes have slower links.
    Slow {
        /// Which.
        who: Who,
        /// Their rate over that of the others.
        factor: f64,
    },
}

/// Something that a run is supposed to exercise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Busy,
    Cancel,
    ChunkBroken,
    ChunkFellSilent,
    ChunkStopped,
    Close,
    CorruptChunk,
    Dial,
    FirewalledDial,
    Frozen,
    IdleTimeout,
    Lie,
    LostDial,
    ManifestFromMember,
    PacketLost,
    RequestToSeed,
    SeedBack,
    SeedKilled,
    SlowNode,
    Thawed,
    UploadCancelled,
    UploadRefused,
    UploadStalled,
    Vanished,
    VanishedWhileFetching,
}

/// The names of [`Happening`]s, in their order.
const NAMES: [&str; Happening::VanishedWhileFetching as usize + 1] = [
    "busy",
    "cancel",
    "chunk broken",
    "chunk fell silent",
    "chunk stopped",
    "close",
    "corrupt chunk",
    "dial",
    "firewalled dial",
    "frozen",
    "idle timeout",
    "lie",
    "lost dial",
    "manifest from a member",
    "packet lost",
    "request to the seed",
    "seed back",
    "seed killed",
    "slow node",
    "thawed",
    "upload cancelled",
    "upload refused",
    "upload stalled",
    "vanished",
    "vanished while fetching",
];

/// How often each thing happened that a run is supposed to exercise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sometimes {
    counts: [u64; NAMES.len()],
}

impl Sometimes {
    pub(crate) fn note(&mut self, what: Happening) {
        self.counts[what as usize] += 1;
    }

    /// How often it happened.
    pub fn count(&self, what: &str) -> u64 {
        let place = NAMES.iter().position(|name| *name == what);
        place.map_or(0, |place| self.counts[place])
    }

    /// Everything that happened at least once.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let all = NAMES.iter().copied().zip(self.counts.iter().copied());
        all.filter(|(_, count)| *count > 0)
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Sometimes) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }
}
