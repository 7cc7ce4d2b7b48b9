//! What pxelinux, iPXE and GRUB read: three ways to say "this kernel, this initrd, this line".

use super::{INITRD, KERNEL, Plan};

/// `pxelinux.cfg/default`. `SYSAPPEND 2` adds BOOTIF, so that a node with several interfaces asks for
/// its address on the one it booted from.
pub fn pxelinux_config(plan: &Plan) -> String {
    format!(
        "# {image}, written by `rootswarm pxe`\n\
         DEFAULT rootswarm\n\
         PROMPT 0\n\
         SYSAPPEND 2\n\
         LABEL rootswarm\n\
         \x20 KERNEL {kernel}\n\
         \x20 INITRD {initrd}\n\
         \x20 APPEND {line}\n",
        image = plan.image,
        kernel = plan.file(KERNEL),
        initrd = plan.file(INITRD),
        line = plan.kernel_line(),
    )
}

/// What pxelinux adds by itself: 01 is Ethernet, then the address of the interface.
const IPXE_BOOTIF: &str = "BOOTIF=01-${netX/mac:hexhyp}";

/// `boot.ipxe`. It tries again by itself: a thousand machines that start together find a busy
/// server, and firmware that gives up waits for a hand.
pub fn ipxe_script(plan: &Plan) -> String {
    format!(
        "#!ipxe\n\
         # {image}, written by `rootswarm pxe`\n\
         {own}\
         :start\n\
         kernel {kernel} {line} {IPXE_BOOTIF} initrd={INITRD} || goto again\n\
         initrd --name {INITRD} {initrd} || goto again\n\
         boot || goto again\n\
         :again\n\
         echo Could not load {image}, trying again in 5 seconds\n\
         imgfree\n\
         sleep 5\n\
         goto start\n",
        own = match plan.by_machine {
            // One that has no entry of its own goes on here.
            true => format!("chain --replace {} ||\n", plan.file(&ipxe_name(IPXE_MAC))),
            false => String::new(),
        },
        image = plan.image,
        kernel = plan.file(KERNEL),
        initrd = plan.file(INITRD),
        line = plan.kernel_line(),
    )
}

/// The interface that iPXE booted from, as it writes it.
const IPXE_MAC: &str = "${netX/mac:hexhyp}";

/// The script of the machine with this address, hyphens in it.
pub fn ipxe_name(mac: &str) -> String {
    format!("boot-01-{mac}.ipxe")
}

/// `grub/grub.cfg`, where Debian's network GRUB looks for it.
pub fn grub_config(plan: &Plan) -> String {
    // GRUB writes http://host:port/path as (http,host:port)/path, and the server that it came from
    // itself as the root device.
    let file = |name: &str| match plan
        .file(name)
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((server, path)) => format!("(http,{server})/{path}"),
        None => format!("/{name}"),
    };
    let line: Vec<String> = plan
        .kernel_line()
        .split_whitespace()
        .map(grub_word)
        .collect();
    format!(
        "# {image}, written by `rootswarm pxe`\n\
         set timeout=0\n\
         menuentry \"rootswarm {image}\" {{\n\
         \x20 linux {kernel} {line}\n\
         \x20 initrd {initrd}\n\
         }}\n",
        image = plan.image,
        kernel = file(KERNEL),
        initrd = file(INITRD),
        line = line.join(" "),
    )
}

/// A word that GRUB's shell reads as it is.
fn grub_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=:/@.,_-+%[]".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::RootMode;
    use crate::pxe::BootNetwork;

    pub(crate) fn plan(http: bool) -> Plan {
        let pin = "ab".repeat(32);
        Plan {
            image: "web".parse().unwrap(),
            root_url: format!("swarm://10.0.0.1/web@blake3:{pin}")
                .parse()
                .unwrap(),
            network: BootNetwork {
                host: [10, 0, 0, 1].into(),
                interface: Some("br0".into()),
                network: [10, 0, 0, 0].into(),
                prefix: 24,
            },
            append: " console=ttyS0,115200 ".into(),
            mode: None,
            http_boot: http.then(|| "http://10.0.0.1:7480/boot/".into()),
            out: "/srv/tftp".into(),
            leases: Some(([10, 0, 0, 32].into(), [10, 0, 0, 254].into())),
            router: None,
            dns: None,
            by_machine: false,
            ipxe_script: true,
            uefi_loader: None,
        }
    }

    fn line() -> String {
        format!(
            "boot=ram rooturl=swarm://10.0.0.1/web@blake3:{} ip=dhcp panic=30 console=ttyS0,115200",
            "ab".repeat(32)
        )
    }

    #[test]
    fn the_kernel_line() {
        let mut plan = plan(false);
        assert_eq!(plan.kernel_line(), line());
        plan.mode = Some(RootMode::Ro);
        plan.append = String::new();
        assert!(
            plan.kernel_line()
                .ends_with(" ip=dhcp rootswarm.mode=ro panic=30")
        );
        // What the admin says about it is all that is said.
        for own in ["panic=0", "quiet panic=5 debug", "panic=-1"] {
            plan.append = own.to_owned();
            let line = plan.kernel_line();
            assert_eq!(line.matches("panic=").count(), 1, "{line}");
            assert!(line.ends_with(own), "{line}");
        }
    }

    #[test]
    fn over_tftp_all_is_relative_to_where_the_loader_came_from() {
        let line = line();
        assert_eq!(
            pxelinux_config(&plan(false)),
            format!(
                "# web, written by `rootswarm pxe`\nDEFAULT rootswarm\nPROMPT 0\nSYSAPPEND 2\nLABEL rootswarm\n  KERNEL vmlinuz\n  INITRD initrd.img\n  APPEND {line}\n"
            )
        );
        assert!(ipxe_script(&plan(false)).contains(&format!(
            "\nkernel vmlinuz {line} {IPXE_BOOTIF} initrd=initrd.img || goto again\n"
        )));
        assert!(grub_config(&plan(false)).contains(&format!(
            "\n  linux /vmlinuz {line}\n  initrd /initrd.img\n"
        )));
    }

    #[test]
    fn over_http_all_is_absolute() {
        let plan = plan(true);
        assert!(pxelinux_config(&plan).contains("\n  KERNEL http://10.0.0.1:7480/boot/vmlinuz\n  INITRD http://10.0.0.1:7480/boot/initrd.img\n"));
        assert!(
            ipxe_script(&plan).contains("\nkernel http://10.0.0.1:7480/boot/vmlinuz boot=ram ")
        );
        assert!(
            grub_config(&plan).contains("\n  linux (http,10.0.0.1:7480)/boot/vmlinuz boot=ram ")
        );
    }

    #[test]
    fn ipxe_asks_for_the_machines_own_script_first() {
        assert!(!ipxe_script(&plan(true)).contains("chain"));
        for (http, place) in [(false, ""), (true, "http://10.0.0.1:7480/boot/")] {
            let mut plan = plan(http);
            plan.by_machine = true;
            let line =
                format!("\nchain --replace {place}boot-01-${{netX/mac:hexhyp}}.ipxe ||\n:start\n");
            assert!(ipxe_script(&plan).contains(&line), "{}", ipxe_script(&plan));
        }
    }

    #[test]
    fn grub_words() {
        assert_eq!(grub_word("console=ttyS0,115200"), "console=ttyS0,115200");
        assert_eq!(grub_word("a;b"), "'a;b'");
        assert_eq!(grub_word("it's"), "'it'\\''s'");
    }
}
