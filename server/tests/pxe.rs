//! Boot files made by the binary with Debian's pxelinux, checked by dnsmasq, fetched over HTTP.

mod common;

use std::fs;
use std::process::Command;

use common::{Place, Server, refuse, run_ok};

#[test]
fn boot_files_for_dnsmasq_pxelinux_ipxe_and_grub() {
    let place = Place::new();
    let mut kernel = vec![7; 2_000_000];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let kernel_path = place.file("vmlinuz-6.1.0-cloud-amd64", &kernel);
    let initrd_path = place.file("initrd.img-6.1.0", b"initrd");
    let out = place.path("tftp");
    let id = {
        let mut copies = fs::read_dir(place.state().join("images")).unwrap();
        copies
            .next()
            .unwrap()
            .unwrap()
            .file_name()
            .into_string()
            .unwrap()
    };
    let base = [
        "pxe",
        "--kernel",
        &kernel_path,
        "--initrd",
        &initrd_path,
        "--image",
        "web",
        "--out",
        &out,
        "--host",
        "10.77.0.1",
        "--subnet",
        "10.77.0.0/24",
    ];
    let line = format!("boot=ram rooturl=swarm://10.77.0.1/web@blake3:{id} ip=dhcp panic=30");
    let pxelinux =
        || fs::read_to_string(place.directory.path().join("tftp/pxelinux.cfg/default")).unwrap();

    // TFTP for everything is the default.
    let said = run_ok(
        &place.state(),
        &[&base[..], &["--append", "console=ttyS0,115200 quiet"]].concat(),
    );
    assert_eq!(said, format!("{line} console=ttyS0,115200 quiet\n"));
    assert!(
        pxelinux().contains(&format!(
            "  KERNEL vmlinuz\n  INITRD initrd.img\n  APPEND {}",
            said
        )),
        "{}",
        pxelinux()
    );
    for (name, contents) in [("vmlinuz", &kernel[..]), ("initrd.img", b"initrd")] {
        assert!(
            fs::read(format!("{out}/{name}")).unwrap() == contents,
            "{name}"
        );
    }
    for name in [
        "lpxelinux.0",
        "ldlinux.c32",
        "boot.ipxe",
        "grub/grub.cfg",
        "dnsmasq.conf",
    ] {
        assert!(
            fs::metadata(format!("{out}/{name}")).unwrap().len() > 0,
            "{name}"
        );
    }
    assert!(
        fs::read_dir(place.state().join("boot"))
            .unwrap()
            .next()
            .is_none(),
        "HTTP was not asked for"
    );

    // Written again with HTTP, another mode and without a pin, all in place of the old.
    let said = run_ok(
        &place.state(),
        &[
            &base[..],
            &[
                "--http",
                "--mode",
                "ro",
                "--no-pin",
                "--http-listen",
                "0.0.0.0:8080",
            ],
        ]
        .concat(),
    );
    assert_eq!(
        said,
        "boot=ram rooturl=swarm://10.77.0.1/web ip=dhcp rootswarm.mode=ro panic=30\n"
    );
    assert!(
        pxelinux().contains("  KERNEL http://10.77.0.1:8080/boot/vmlinuz\n"),
        "{}",
        pxelinux()
    );
    let server = Server::start(&place.state(), &[]);
    assert!(server.request("GET", "/boot/vmlinuz", &[]).body == kernel);
    let script = String::from_utf8(server.request("GET", "/boot/boot.ipxe", &[]).body).unwrap();
    assert!(
        script.starts_with("#!ipxe\n")
            && script.contains("kernel http://10.77.0.1:8080/boot/vmlinuz boot=ram "),
        "{script}"
    );

    for extra in [
        &["--proxy-dhcp"][..],
        &[
            "--dhcp-range",
            "10.77.0.50,10.77.0.60",
            "--router",
            "10.77.0.1",
        ],
    ] {
        run_ok(&place.state(), &[&base[..], extra].concat());
        let checked = Command::new("dnsmasq")
            .args(["--test", "-C", &format!("{out}/dnsmasq.conf")])
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{extra:?}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }
    let dnsmasq = fs::read_to_string(format!("{out}/dnsmasq.conf")).unwrap();
    assert!(
        dnsmasq.contains("\ndhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,12h\n"),
        "{dnsmasq}"
    );
    assert!(
        dnsmasq.contains("\ndhcp-option=option:router,10.77.0.1\n"),
        "{dnsmasq}"
    );
    assert!(
        dnsmasq.contains(&format!("\ntftp-root={out}\n")),
        "{dnsmasq}"
    );
}

/// A place with a kernel, an initrd and loaders of one's own.
struct BootHost {
    place: Place,
    kernel: String,
    initrd: String,
    out: String,
    lib: String,
}

impl BootHost {
    fn new() -> BootHost {
        let place = Place::new();
        let mut kernel = vec![7; 100_000];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        for name in ["PXELINUX/lpxelinux.0", "syslinux/modules/bios/ldlinux.c32"] {
            let path = place.directory.path().join("lib").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "loader").unwrap();
        }
        BootHost {
            kernel: place.file("vmlinuz", &kernel),
            initrd: place.file("initrd.img", b"initrd"),
            out: place.path("tftp"),
            lib: place.path("lib"),
            place,
        }
    }

    /// The arguments of `rootswarm pxe` for this network.
    fn args<'a>(&'a self, host: &'a str, subnet: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let (kernel, initrd) = (self.kernel.as_str(), self.initrd.as_str());
        let mut args = vec![
            "pxe", "--kernel", kernel, "--initrd", initrd, "--image", "web",
        ];
        args.extend(["--out", &self.out, "--syslinux-dir", &self.lib]);
        args.extend(["--host", host, "--subnet", subnet]);
        args.extend(more);
        args
    }

    fn read(&self, entry: &str) -> String {
        fs::read_to_string(format!("{}/{entry}", self.out)).unwrap()
    }
}

/// The token in a boot entry.
fn token_in(entry: &str) -> String {
    let (_, rest) = entry.split_once("rootswarm.token=").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

/// Each machine that is named has its own entry for each loader, with a one-time token that is good once;
/// who is not named has the common one, without any.
#[test]
fn each_machine_has_its_own_one_time_token() {
    let host = BootHost::new();
    let place = &host.place;
    let write = |machines: &[&str], http: bool| {
        let machines = machines.iter().flat_map(|machine| ["--machine", machine]);
        let more: Vec<&str> = machines.chain(http.then_some("--http")).collect();
        run_ok(&place.state(), &host.args("10.0.0.1", "10.0.0.0/24", &more));
    };
    let read = |entry: &str| host.read(entry);
    let common = |text: String| assert!(!text.contains("rootswarm.token"), "{text}");
    let macs = [
        "52-54-00-12-34-56",
        "52-54-00-12-34-57",
        "02-00-00-00-00-0a",
    ];
    write(
        &["52:54:00:12:34:56,52-54-00-12-34-57", "02:00:00:00:00:0A"],
        true,
    );
    let mut tokens = Vec::new();
    for mac in macs {
        let token = token_in(&read(&format!("pxelinux.cfg/01-{mac}")));
        assert_eq!(token_in(&read(&format!("grub/grub.cfg-01-{mac}"))), token);
        assert_eq!(token_in(&read(&format!("boot-01-{mac}.ipxe"))), token);
        let served = place.state().join(format!("boot/boot-01-{mac}.ipxe"));
        assert_eq!(token_in(&fs::read_to_string(served).unwrap()), token);
        tokens.push(token);
    }
    tokens.dedup();
    assert_eq!(tokens.len(), macs.len());
    common(read("pxelinux.cfg/default"));
    common(read("grub/grub.cfg"));
    common(read("boot.ipxe"));
    let listed = run_ok(&place.state(), &["token", "list"]);
    for mac in macs {
        let note = format!("pxe {}", mac.replace('-', ":"));
        assert_eq!(listed.matches(&note).count(), 1, "{listed}");
    }
    // Again, for one of them: its old one ends, the others' go on.
    write(&["52:54:00:12:34:57"], false);
    let listed = run_ok(&place.state(), &["token", "list"]);
    let again = token_in(&read("pxelinux.cfg/01-52-54-00-12-34-57"));
    for (token, there) in [
        (&tokens[0], true),
        (&tokens[1], false),
        (&tokens[2], true),
        (&again, true),
    ] {
        let id = token.split('-').next().unwrap();
        assert_eq!(listed.contains(id), there, "{token}: {listed}");
    }
}

/// Whatever is asked for in one run and in the next: many machines, one of them twice, in another order, in
/// another spelling. Each has one token that is good, and its entries show that.
#[test]
fn a_machine_has_one_good_token_however_often_it_is_named() {
    let boot = BootHost::new();
    let place = &boot.place;
    let many: Vec<String> = (0..40).map(|n| format!("52:54:00:aa:00:{n:02x}")).collect();
    let backwards: Vec<String> = many.iter().rev().map(|mac| mac.to_uppercase()).collect();
    let twice = [
        "02-00-00-00-00-0b",
        "02:00:00:00:00:0B",
        "02:00:00:00:00:0b",
    ];
    let other: Vec<String> = twice.map(str::to_owned).to_vec();
    let few = [&backwards[38..], &other[..1]].concat();
    let mut all: Vec<String> = Vec::new();
    let mut good_before: Vec<String> = Vec::new();
    for (machines, host, subnet) in [
        (&many, "10.0.0.1", "10.0.0.0/24"),
        (&other, "10.0.0.1", "10.0.0.0/24"),
        (&few, "192.168.7.1", "192.168.0.0/16"),
        (&backwards, "10.0.0.1", "10.0.0.0/8"),
    ] {
        let more: Vec<&str> = machines
            .iter()
            .flat_map(|machine| ["--machine", machine])
            .collect();
        run_ok(&place.state(), &boot.args(host, subnet, &more));
        all.extend(
            machines
                .iter()
                .map(|mac| mac.to_lowercase().replace(':', "-")),
        );
        all.sort();
        all.dedup();
        let listed = run_ok(&place.state(), &["token", "list"]);
        let mut good = Vec::new();
        for mac in &all {
            let token = token_in(&boot.read(&format!("pxelinux.cfg/01-{mac}")));
            let grub = boot.read(&format!("grub/grub.cfg-01-{mac}"));
            assert!(grub.contains(&token), "{mac}");
            assert!(listed.contains(&token[..8]), "{mac}: {listed}");
            let note = format!("pxe {}", mac.replace('-', ":"));
            assert_eq!(listed.matches(&note).count(), 1, "{mac}: {listed}");
            good.push(token);
        }
        let mut different = good.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), all.len(), "two machines share a token");
        // Those that were not named this time go on, the others' of before have ended.
        let named = |token: &String| !good_before.contains(token);
        let renewed = good.iter().filter(|token| named(token)).count();
        let mut distinct: Vec<String> = machines.iter().map(|mac| mac.to_lowercase()).collect();
        distinct
            .iter_mut()
            .for_each(|mac| *mac = mac.replace('-', ":"));
        distinct.sort();
        distinct.dedup();
        assert_eq!(renewed, distinct.len());
        good_before = good;
    }
}

#[test]
fn boot_entries_name_all_seeds() {
    let boot = BootHost::new();
    let place = &boot.place;
    let args = |seeds| boot.args("10.77.0.1", "10.77.0.0/24", &["--no-pin", "--seed", seeds]);
    for (seeds, hosts) in [
        ("10.77.0.2", "10.77.0.1,10.77.0.2"),
        ("10.77.0.2:7500,boot3", "10.77.0.1,10.77.0.2:7500,boot3"),
    ] {
        let said = run_ok(&place.state(), &args(seeds));
        let expected = format!("boot=ram rooturl=swarm://{hosts}/web ip=dhcp panic=30\n");
        assert_eq!(said, expected);
        for entry in ["pxelinux.cfg/default", "boot.ipxe", "grub/grub.cfg"] {
            let text = boot.read(entry);
            assert!(
                text.contains(&format!("swarm://{hosts}/web")),
                "{entry}: {text}"
            );
        }
    }
    let many = ["10.77.0.2"; 16].join(",");
    refuse(&place.state(), &args(&many), 2, "at most 16 seeds");
}
