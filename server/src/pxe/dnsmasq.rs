//! `dnsmasq.conf`: DHCP (or proxy DHCP) and TFTP for the boot network, and no DNS.

use std::fmt::Write as _;

use super::Plan;

/// Transfers at a time; dnsmasq's own limit is 50, which a rack exceeds. Each is a socket of a
/// process that may open 1,024.
const TFTP_TRANSFERS: usize = 500;

/// Long enough that no lease ends during a boot, however slow.
const LEASE: &str = "12h";

/// dnsmasq keeps each lease in memory and writes all of them at each change.
const MAX_LEASES: u64 = 65_536;

/// The whole file.
pub fn config(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |content: &str| {
        let _ = writeln!(text, "{content}");
    };
    let out = plan.out.display();
    line(&format!(
        "# Boots {} from {}. Written by `rootswarm pxe`; start it with",
        plan.image, plan.network.host
    ));
    line(&format!(
        "#   dnsmasq --keep-in-foreground --conf-file={out}/dnsmasq.conf"
    ));
    line(
        "# It needs nothing else. Its user (dnsmasq, else nobody) must be able to read the TFTP root.",
    );
    line("");
    line("# no DNS");
    line("port=0");
    match &plan.network.interface {
        Some(interface) => {
            line(&format!("interface={interface}"));
            line("except-interface=lo");
            line("bind-dynamic");
        }
        None => line(
            "# no interface had this network when this was written: dnsmasq looks at all of them",
        ),
    }
    line("");
    dhcp(plan, &mut line);
    line("");
    line("enable-tftp");
    line(&format!("tftp-root={out}"));
    line(&format!("tftp-max={TFTP_TRANSFERS}"));
    line("");
    loaders(plan, &mut line);
    text
}

fn dhcp(plan: &Plan, line: &mut impl FnMut(&str)) {
    let network = &plan.network;
    match plan.leases {
        Some((first, last)) => {
            let leases = (u64::from(last.to_bits() - first.to_bits()) + 1).min(MAX_LEASES);
            line(&format!(
                "dhcp-range={first},{last},{},{LEASE}",
                network.netmask()
            ));
            line(&format!("dhcp-lease-max={leases}"));
            line(
                "# the only DHCP server here: a machine that comes with an old lease is answered at once",
            );
            line("dhcp-authoritative");
            match plan.router {
                Some(router) => line(&format!("dhcp-option=option:router,{router}")),
                None => {
                    line("# no default route; dnsmasq would name this host (--router chooses one)");
                    line("dhcp-option=option:router");
                }
            }
            if let Some(dns) = plan.dns {
                line(&format!("dhcp-option=option:dns-server,{dns}"));
            }
        }
        None => {
            line("# another server leases the addresses, this one adds what to boot");
            line(&format!(
                "dhcp-range={},proxy,{}",
                network.network,
                network.netmask()
            ));
        }
    }
}

fn loaders(plan: &Plan, line: &mut impl FnMut(&str)) {
    let proxy = plan.leases.is_none();
    if plan.ipxe_script {
        line("# iPXE (option 175) reads a script");
        line("dhcp-match=set:ipxe,175");
        line("dhcp-boot=tag:ipxe,boot.ipxe");
        if proxy {
            // What a proxy says is read from the PXE menu; dhcp-boot alone is not taken.
            for architecture in ["x86PC", "X86-64_EFI", "BC_EFI"] {
                line(&format!(
                    "pxe-service=tag:ipxe,{architecture},\"rootswarm\",boot.ipxe"
                ));
            }
        }
        line("");
    }
    let not_ipxe = if plan.ipxe_script { "tag:!ipxe," } else { "" };
    line("# BIOS (architecture 0)");
    line("dhcp-match=set:bios,option:client-arch,0");
    line(&format!("dhcp-boot=tag:bios,{not_ipxe}lpxelinux.0"));
    if proxy {
        line(&format!(
            "pxe-service={not_ipxe}x86PC,\"rootswarm\",lpxelinux.0"
        ));
    }
    line("");
    line("# UEFI, x86-64 (architectures 7 and 9)");
    line("dhcp-match=set:efi64,option:client-arch,7");
    line("dhcp-match=set:efi64,option:client-arch,9");
    let (comment, loader) = if plan.uefi_loader.is_some() {
        ("", "snponly.efi")
    } else {
        line(
            "# Supply a loader: an iPXE snponly.efi (Debian: package ipxe) or GRUB's grubnetx64.efi (Debian:",
        );
        line(
            "# grub-efi-amd64-signed; it reads grub/grub.cfg) beside this file, and take the # away.",
        );
        ("#", "snponly.efi")
    };
    line(&format!("{comment}dhcp-boot=tag:efi64,{not_ipxe}{loader}"));
    if proxy {
        line(&format!(
            "{comment}pxe-service={not_ipxe}X86-64_EFI,\"rootswarm\",{loader}"
        ));
        line(&format!(
            "{comment}pxe-service={not_ipxe}BC_EFI,\"rootswarm\",{loader}"
        ));
    }
    line("");
    line(
        "# UEFI, arm64 (architecture 11): supply a loader, an arm64 snponly.efi or grubnetaa64.efi.",
    );
    line("dhcp-match=set:efiarm64,option:client-arch,11");
    line(&format!(
        "#dhcp-boot=tag:efiarm64,{not_ipxe}snponly-arm64.efi"
    ));
    if let Some(base) = &plan.http_boot {
        line("");
        line(
            "# UEFI HTTP boot, x86-64 (architecture 16): supply ipxe.efi in the state directory's boot/.",
        );
        line("dhcp-match=set:efihttp,option:client-arch,16");
        line("#dhcp-option-force=tag:efihttp,60,HTTPClient");
        line(&format!(
            "#dhcp-boot=tag:efihttp,{not_ipxe}\"{base}ipxe.efi\""
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pxe::loaders::tests::plan;
    use std::process::Command;

    /// What dnsmasq itself says about the file.
    fn check_with_dnsmasq(config: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dnsmasq.conf");
        std::fs::write(&path, config).unwrap();
        match Command::new("dnsmasq")
            .arg("--test")
            .arg("-C")
            .arg(&path)
            .output()
        {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{said}\n{config}");
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                panic!("dnsmasq is not installed (Debian: apt-get install dnsmasq-base)")
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn dnsmasq_accepts_every_kind() {
        for http in [false, true] {
            for proxy in [false, true] {
                for uefi in [false, true] {
                    for ipxe in [false, true] {
                        let mut plan = plan(http);
                        plan.ipxe_script = ipxe;
                        if proxy {
                            plan.leases = None;
                        }
                        if uefi {
                            plan.uefi_loader = Some("/usr/lib/ipxe/snponly.efi".into());
                            plan.router = Some([10, 0, 0, 1].into());
                            plan.dns = Some([10, 0, 0, 2].into());
                            plan.network.interface = None;
                        }
                        let text = config(&plan);
                        check_with_dnsmasq(&text);
                        // Commented lines are for admins to take the # away from: they must be right too.
                        let uncommented: String = text
                            .lines()
                            .map(|line| {
                                line.strip_prefix('#')
                                    .filter(|rest| !rest.starts_with(' '))
                                    .unwrap_or(line)
                            })
                            .fold(String::new(), |all, line| all + line + "\n");
                        check_with_dnsmasq(&uncommented);
                    }
                }
            }
        }
    }

    #[test]
    fn what_matters_is_said() {
        let text = config(&plan(false));
        for expected in [
            "port=0",
            "interface=br0",
            "dhcp-range=10.0.0.32,10.0.0.254,255.255.255.0,12h",
            "dhcp-lease-max=223",
            "tftp-root=/srv/tftp",
            "dhcp-boot=tag:ipxe,boot.ipxe",
            "dhcp-boot=tag:bios,tag:!ipxe,lpxelinux.0",
        ] {
            assert!(
                text.lines().any(|line| line == expected),
                "{expected} is missing in\n{text}"
            );
        }
    }
}
