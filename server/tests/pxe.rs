//! Boot files made by the binary with Debian's pxelinux, checked by dnsmasq, fetched over HTTP.

mod common;

use std::fs;
use std::process::Command;

use common::{Place, Server, run_ok};

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
    let line = format!("boot=ram rooturl=swarm://10.77.0.1/web@blake3:{id} ip=dhcp");
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
        "boot=ram rooturl=swarm://10.77.0.1/web ip=dhcp rootswarm.mode=ro\n"
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

/// Each machine that is named has its own entry for each loader, with a one-time token that is good once;
/// who is not named has the common one, without any.
#[test]
fn each_machine_has_its_own_one_time_token() {
    let place = Place::new();
    place.file("vmlinuz", b"kernel");
    place.file("initrd.img", b"initrd");
    for name in ["PXELINUX/lpxelinux.0", "syslinux/modules/bios/ldlinux.c32"] {
        let path = place.directory.path().join("lib").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "loader").unwrap();
    }
    let (kernel, initrd) = (place.path("vmlinuz"), place.path("initrd.img"));
    let (out, lib) = (place.path("tftp"), place.path("lib"));
    let write = |machines: &[&str], http: bool| {
        let mut args = vec![
            "pxe", "--kernel", &kernel, "--initrd", &initrd, "--image", "web",
        ];
        args.extend(["--out", &out, "--syslinux-dir", &lib]);
        args.extend(["--host", "10.0.0.1", "--subnet", "10.0.0.0/24"]);
        args.extend(http.then_some("--http"));
        for machine in machines {
            args.extend(["--machine", machine]);
        }
        run_ok(&place.state(), &args);
    };
    let read = |path: &str| fs::read_to_string(format!("{out}/{path}")).unwrap();
    let token_in = |text: &str| {
        let (_, rest) = text.split_once("rootswarm.token=").unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    };
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
