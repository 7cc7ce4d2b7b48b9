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
