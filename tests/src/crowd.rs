//! What members cost a seed: the memory of a real one before they come, while they are idle, and while
//! they fetch.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::hostile::Prey;
use crate::members::{Conduct, Members};
use crate::source;
use crate::swarm::{Place, SWARM_PORT, Seed};

/// How long each state is looked at: several of the seed's status documents and keep-alives.
const WATCH: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(100);

/// A number of members.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// How many.
    pub members: usize,
    /// The image's length.
    pub image_bytes: u64,
    /// For all of them to join.
    pub limit: Duration,
}

/// What they cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The seed's own memory without any.
    pub empty_bytes: u64,
    /// The most that it had while they joined and were idle, and when they had been.
    pub idle_bytes: [u64; 2],
    /// The same while they joined and fetched.
    pub fetching_bytes: [u64; 2],
    /// Seconds until all idle ones, and all fetching ones, were in.
    pub joined_s: [f64; 2],
    /// Chunks that those who fetched got meanwhile.
    pub chunks: u64,
}

impl Cost {
    /// What one member more costs, once it is in: idle and fetching.
    #[must_use]
    pub fn each(&self, crowd: &Crowd) -> [u64; 2] {
        [self.idle_bytes[1], self.fetching_bytes[1]]
            .map(|bytes| bytes.saturating_sub(self.empty_bytes) / crowd.members as u64)
    }
}

impl Crowd {
    /// Lets them come to a new seed, idle ones first; when they have left, those who fetch.
    ///
    /// # Errors
    /// When the seed ends, or members do not get in.
    pub fn run(&self, directory: &Path) -> Result<Cost, Box<dyn std::error::Error>> {
        let image = directory.join("source");
        source::write(&image, self.image_bytes, 1)?;
        let mut cost = Cost {
            empty_bytes: 0,
            idle_bytes: [0; 2],
            fetching_bytes: [0; 2],
            joined_s: [0.0; 2],
            chunks: 0,
        };
        for (number, conduct) in [Conduct::Idle, Conduct::Fetching].into_iter().enumerate() {
            let directory = directory.join(format!("{conduct:?}"));
            std::fs::create_dir_all(&directory)?;
            let published = [("crowd", image.as_path())];
            // A seed of its own for each: what the first crowd left is no part of the second's.
            let mut seed = Seed::start(Place::loopback(), &directory, &published, &[])?;
            let url = seed.url("crowd")?;
            let prey = Prey::of(&url, SocketAddr::from((seed.address, SWARM_PORT)))?;
            std::thread::sleep(Duration::from_secs(1));
            cost.empty_bytes = seed.process.usage()?.rss_anon_bytes;
            let begin = Instant::now();
            let net = 210 + number as u8;
            let members = Members::begin(&prey, self.members, conduct, net)?;
            let mut peak = 0;
            let mut joined_at = None;
            let last = loop {
                let last = seed.process.usage()?.rss_anon_bytes;
                peak = last.max(peak);
                if last == 0 {
                    return Err(format!("the seed ended: {}", seed.process.tail(5)).into());
                }
                if joined_at.is_none() && members.joined() == self.members {
                    joined_at = Some(Instant::now());
                }
                match joined_at {
                    Some(at) if at.elapsed() >= WATCH => break last,
                    None if begin.elapsed() > self.limit => {
                        members.wait_joined(Duration::ZERO)?;
                    }
                    _ => {}
                }
                std::thread::sleep(POLL);
            };
            let there = self.there(&seed)?;
            if there + members.lost() < self.members || members.lost() > self.members / 100 {
                let lost = members.lost();
                return Err(format!("the seed sees {there} members, {lost} were lost").into());
            }
            cost.joined_s[number] = joined_at.map_or(0.0, |at| (at - begin).as_secs_f64());
            match conduct {
                Conduct::Idle => cost.idle_bytes = [peak, last],
                Conduct::Fetching => {
                    cost.fetching_bytes = [peak, last];
                    cost.chunks = members.chunks();
                }
            }
        }
        Ok(cost)
    }

    fn there(&self, seed: &Seed) -> Result<usize, Box<dyn std::error::Error>> {
        let status = seed.status()?;
        let nodes = status["images"][0]["nodes"].as_array();
        Ok(nodes.map_or(0, Vec::len))
    }
}
