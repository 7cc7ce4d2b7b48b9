//! What a booted machine says about itself: the lines of `guest/report.sh`, parsed.

use std::collections::BTreeMap;

use serde_json::Value;

/// Starts each line of the report.
const MARK: &str = "@lab ";

/// A whole report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// `systemctl is-system-running`.
    pub systemd: String,
    /// Units that failed.
    pub failed_units: Vec<String>,
    /// `free -m`, at the least of some seconds.
    pub memory: Memory,
    /// Lines of /proc/meminfo, in KiB.
    pub meminfo: BTreeMap<String, u64>,
    /// Processes with more than 1 MiB of their own memory, with their KiB.
    pub processes: Vec<(u64, String)>,
    /// KiB used in each tmpfs, by where it is mounted.
    pub tmpfs: BTreeMap<String, u64>,
    /// Files of more than 1 MiB in those that the system writes to, with their KiB.
    pub large_files: Vec<(u64, String)>,
    /// What is mounted where, of the mounts that matter here.
    pub mounts: BTreeMap<String, Mount>,
    /// The agents that run: one that serves, or none.
    pub agents: Vec<AgentProcess>,
    /// Processes of the initramfs that still run, the agent left out.
    pub left: Vec<LeftProcess>,
    /// The agent's status document.
    pub status: Option<Value>,
    /// How long the machine had been up when it wrote this.
    pub uptime_s: f64,
}

/// The figures of `free -m`, in its unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All there is.
    pub total_mib: u64,
    /// Used, as free understands it.
    pub used_mib: u64,
    /// In tmpfs and shared memory; part of `used_mib`.
    pub shared_mib: u64,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device, or what stands in its place.
    pub source: String,
    /// The type of the file system.
    pub fs_type: String,
}

/// An agent that was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentProcess {
    /// Its process id.
    pub pid: u32,
    /// Its resident set, the mapped image included.
    pub rss_kib: u64,
    /// Its own memory.
    pub anon_kib: u64,
}

/// A process that the initramfs left behind, other than the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftProcess {
    /// Its process id.
    pub pid: u32,
    /// Its own memory.
    pub anon_kib: u64,
    /// Of the initramfs' files, deleted since: its program and libraries, which stay in RAM with it.
    pub pinned_kib: u64,
    /// What the kernel calls it.
    pub name: String,
}

impl Facts {
    /// The report in a console's lines; `None` until it is whole.
    ///
    /// # Errors
    /// With the line that is not as `report.sh` writes it.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Option<Facts>, String> {
        let mut begun = false;
        let mut facts = Facts::default();
        // The mark may follow what somebody else left without a line break.
        let reports = lines
            .into_iter()
            .filter_map(|line| Some(line.split_once(MARK)?.1.trim_end()));
        for report in reports {
            let (key, value) = report.split_once(' ').unwrap_or((report, ""));
            match key {
                "begin" => {
                    begun = true;
                    facts = Facts::default();
                }
                "end" if begun => return Ok(Some(facts)),
                _ if begun => facts.take(key, value).ok_or_else(|| report.to_owned())?,
                _ => return Err(report.to_owned()),
            }
        }
        Ok(None)
    }

    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        let words: Vec<&str> = value.split(' ').collect();
        match (key, words.as_slice()) {
            ("systemd", [state]) => self.systemd = (*state).to_owned(),
            ("failed", [unit]) => self.failed_units.push((*unit).to_owned()),
            ("memory", [total, used, shared]) => {
                self.memory = Memory {
                    total_mib: total.parse().ok()?,
                    used_mib: used.parse().ok()?,
                    shared_mib: shared.parse().ok()?,
                };
            }
            ("tmpfs", [used_kib, target]) => {
                self.tmpfs
                    .insert((*target).to_owned(), used_kib.parse().ok()?);
            }
            ("meminfo", [kib, name]) => {
                self.meminfo.insert((*name).to_owned(), kib.parse().ok()?);
            }
            ("process", [kib, name @ ..]) if !name.is_empty() => {
                self.processes.push((kib.parse().ok()?, name.join(" ")));
            }
            ("file", [kib, path @ ..]) if !path.is_empty() => {
                self.large_files.push((kib.parse().ok()?, path.join(" ")));
            }
            ("mount", [target, source, fs_type]) => {
                let mount = Mount {
                    source: (*source).to_owned(),
                    fs_type: (*fs_type).to_owned(),
                };
                self.mounts.insert((*target).to_owned(), mount);
            }
            ("agent", [pid, rss, anon]) => self.agents.push(AgentProcess {
                pid: pid.parse().ok()?,
                rss_kib: rss.parse().ok()?,
                anon_kib: anon.parse().ok()?,
            }),
            ("left", [pid, anon, pinned, name @ ..]) if !name.is_empty() => {
                self.left.push(LeftProcess {
                    pid: pid.parse().ok()?,
                    anon_kib: anon.parse().ok()?,
                    pinned_kib: pinned.parse().ok()?,
                    name: name.join(" "),
                });
            }
            ("status", _) => self.status = Some(serde_json::from_str(value).ok()?),
            ("uptime", [seconds]) => self.uptime_s = seconds.parse().ok()?,
            _ => return None,
        }
        Some(())
    }

    /// The type of what is mounted at `target`; empty when nothing is.
    pub fn fs_type(&self, target: &str) -> &str {
        self.mounts.get(target).map_or("", |mount| &mount.fs_type)
    }

    /// MiB in tmpfs, the one at `image_at` left out: what the booted system wrote for itself.
    pub fn written_mib(&self, image_at: &str) -> u64 {
        let written = self.tmpfs.iter().filter(|(target, _)| *target != image_at);
        written.map(|(_, used_kib)| used_kib).sum::<u64>() / 1024
    }

    /// MiB of the initramfs' own udevd, when it still runs: Debian's scripts ask it to exit, they do
    /// not wait for its workers. Main process and workers share their files.
    pub fn left_udevd_mib(&self) -> u64 {
        let udevd = || self.left.iter().filter(|left| left.name.contains("udev"));
        let anon_kib: u64 = udevd().map(|left| left.anon_kib).sum();
        let pinned_kib = udevd().map(|left| left.pinned_kib).max().unwrap_or(0);
        (anon_kib + pinned_kib) / 1024
    }

    /// A number of the agent's status document, wherever in it the key stands.
    pub fn status_number(&self, key: &str) -> Option<u64> {
        find_number(self.status.as_ref()?, key)
    }
}

fn find_number(value: &Value, key: &str) -> Option<u64> {
    let object = value.as_object()?;
    object
        .get(key)
        .and_then(Value::as_u64)
        .or_else(|| object.values().find_map(|inner| find_number(inner, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "[   42.0] systemd[1]: Startup finished\n\
        @lab begin\n\
        @lab systemd degraded\n\
        @lab failed logind.service\n\
        half a line@lab memory 972 238 96\n\
        @lab meminfo 41000 AnonPages\n\
        @lab process 4796 rootswarm-agent\n\
        @lab tmpfs 2048 /run\n\
        @lab tmpfs 91852 /run/rootswarm\n\
        @lab tmpfs 1500 /mnt/rw\n\
        @lab file 1400 /mnt/rw/upper/a b\n\
        @lab mount / overlay overlay\n\
        @lab mount /mnt/ro /dev/loop0 squashfs\n\
        @lab agent 123 14000 9000\n\
        @lab left 99 2048 10240 systemd-udevd\n\
        @lab left 101 1024 10240 (udev-worker)\n\
        @lab left 120 4096 4096 a shell\n\
        @lab status {\"node\": {\"bytes_from_peers\": 7}, \"text\": \"a b\"}\n\
        @lab uptime 48.63\n";

    #[test]
    fn a_report_counts_when_it_is_whole() {
        assert_eq!(Facts::parse(REPORT.lines()), Ok(None));
        let whole = format!("{REPORT}@lab end\r\n");
        let facts = Facts::parse(whole.lines())
            .expect("good lines")
            .expect("whole");
        assert_eq!(facts.systemd, "degraded");
        assert_eq!(facts.failed_units, ["logind.service"]);
        let memory = Memory {
            total_mib: 972,
            used_mib: 238,
            shared_mib: 96,
        };
        assert_eq!(facts.memory, memory);
        assert_eq!(facts.meminfo["AnonPages"], 41000);
        assert_eq!(facts.processes, [(4796, "rootswarm-agent".to_owned())]);
        assert_eq!(facts.written_mib("/run/rootswarm"), 3);
        assert_eq!(facts.large_files, [(1400, "/mnt/rw/upper/a b".to_owned())]);
        assert_eq!(facts.fs_type("/"), "overlay");
        assert_eq!(facts.mounts["/mnt/ro"].source, "/dev/loop0");
        assert_eq!(facts.fs_type("/mnt/rw"), "");
        assert_eq!(
            facts.agents,
            [AgentProcess {
                pid: 123,
                rss_kib: 14000,
                anon_kib: 9000
            }]
        );
        assert_eq!(facts.left.len(), 3);
        assert_eq!(facts.left[2].name, "a shell");
        assert_eq!(facts.left_udevd_mib(), 13);
        assert_eq!(facts.status_number("bytes_from_peers"), Some(7));
        assert_eq!(facts.status_number("bytes_from_seed"), None);
    }

    #[test]
    fn a_line_that_is_not_ours_is_an_error() {
        for bad in [
            "memory 1 2",
            "memory a b c",
            "agent x 1 2",
            "left 1 2 3",
            "status {",
            "colour blue",
            "mount /",
            "tmpfs /run 3",
            "file 7",
            "meminfo 7",
            "process x agent",
        ] {
            let report = format!("@lab begin\n@lab {bad}\n@lab end\n");
            assert_eq!(Facts::parse(report.lines()), Err(bad.to_owned()), "{bad}");
        }
        assert_eq!(Facts::parse(["@lab uptime 3"]), Err("uptime 3".to_owned()));
    }
}
