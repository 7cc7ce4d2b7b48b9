//! nginx at the seed, wget at each node.

use std::path::Path;

use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::BenchError;
use super::{IMAGE_NAME, SEED_READY, Seed, SeedPlace, link_into, writing};

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let directory = place.directory;
    let address = place.node.link.address();
    link_into(place.image, directory)?;
    let shown = directory.display();
    let configuration = format!(
        "user root;\nworker_processes 1;\ndaemon off;\nmaster_process off;\n\
         pid {shown}/pid;\nerror_log stderr;\nevents {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n\
         \x20 client_body_temp_path {shown}/tmp;\n  proxy_temp_path {shown}/tmp;\n\
         \x20 fastcgi_temp_path {shown}/tmp;\n  uwsgi_temp_path {shown}/tmp;\n\
         \x20 scgi_temp_path {shown}/tmp;\n\
         \x20 server {{ listen {address}:80; root {shown}; }}\n}}\n"
    );
    let path = directory.join("nginx.conf");
    std::fs::write(&path, configuration).map_err(writing(&path))?;
    let mut command = place.node.namespace.command("nginx");
    command.args(["-e", "stderr", "-p"]).arg(directory);
    command.arg("-c").arg(&path);
    let mut process = Process::spawn("nginx", command, &directory.join("log"))?;
    // nginx says nothing when it listens; it writes its pid file after that.
    process.wait_for_output("pid file", SEED_READY, |_| {
        std::fs::metadata(directory.join("pid"))
            .is_ok_and(|pid| pid.len() > 0)
            .then_some(())
    })?;
    let url = format!("http://{address}/{IMAGE_NAME}");
    let fetch = move |node: &LabNode, directory: &Path| {
        let mut command = node.namespace.command("wget");
        command.args(["--no-proxy", "--no-verbose", &url, "-O"]);
        command.arg(directory.join(IMAGE_NAME));
        command
    };
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Box::new(fetch),
    })
}
