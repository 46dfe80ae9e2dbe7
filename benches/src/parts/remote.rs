//! A repository on an S3 server (Garage on loopback) beside one in a folder.

use std::collections::BTreeMap;

use underlay_tests::s3::S3Server;
use underlay_tests::{Result, s3};

use super::speed::start_anew;
use crate::bench::{Bench, Label};
use crate::tools::{Mode, Output, Tool, Underlay, underlay_on};

const PART: &str = "remote";

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    s3::garage_program()?;
    let disk = bench.disks.alone(if bench.quick { "minimal" } else { "services" })?;
    let local = Underlay::local(&bench.work)?;
    for round in 0..bench.rounds {
        let server = S3Server::garage()?;
        let remote = underlay_on(&server, "bench", &bench.work)?;
        start_anew(bench, &local)?;
        bench.run(remote.init())?;
        let folder = bench.work.join("restored");
        for tool in [&local, &remote] {
            let log = server.server_log()?.len();
            let label = |step| Label {
                part: PART,
                step,
                tool: if std::ptr::eq(tool, &local) { "folder" } else { "S3" },
                round,
            };
            let backup = tool.backup(&disk, Mode::Usual).unwrap_or_default();
            bench.measure(label("first full backup"), backup, None)?.counts.extend(requests(&server, log)?);
            let log = server.server_log()?.len();
            std::fs::create_dir_all(&folder)?;
            let (commands, file) = tool.restore(&disk, &folder, Output::Raw);
            bench
                .measure(label("restore to raw"), commands, Some(&file))?
                .counts
                .extend(requests(&server, log)?);
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

/// Requests that the server has logged since its log was `from` bytes long, by method.
fn requests(server: &S3Server, from: usize) -> Result<BTreeMap<String, u64>> {
    let log = server.server_log()?;
    let new = log.get(from..).unwrap_or_default();
    let methods = ["PUT", "GET", "HEAD", "DELETE", "POST"];
    let of = |method: &str| new.lines().filter(|line| line.contains(&format!(" {method} /"))).count() as u64;
    Ok(methods.iter().map(|method| (format!("requests {method}"), of(method))).collect())
}
