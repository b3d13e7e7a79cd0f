//! `tools/cluster`: a cluster that is removed is gone, whatever was being done to it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::{
    cluster::{Cluster, base_dir, majors},
    wait_for,
};

fn tool(arguments: &[&str]) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/cluster");
    let mut command = Command::new(script);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it runs")
}

/// Is a server of this directory running?
fn runs(dir: &Path) -> bool {
    let all = Command::new("ps").args(["-eo", "args"]).output().expect("ps runs").stdout;
    let all = String::from_utf8_lossy(&all).into_owned();
    let data = dir.join("data").display().to_string();
    all.lines().any(|line| line.contains("postgres -D") && line.contains(&data))
}

/// What the watchdog of a killed test run meets: somebody was restarting it.
#[test]
fn one_that_is_removed_while_it_starts_is_gone() {
    let major = majors()[0].to_string();
    for wait_for_server in [false, true] {
        let dir = base_dir().join(format!("cluster-starting-{wait_for_server}"));
        let name = dir.display().to_string();
        let mut start = tool(&["start", &name, &major]);
        wait_for("it begins", || dir.join("lock").exists() && (!wait_for_server || runs(&dir)));
        assert!(tool(&["remove", &name]).wait().expect("it ends").success());
        let _ = start.wait().expect("it ends");
        assert!(!dir.exists(), "its directory is there");
        assert!(!runs(&dir), "its server runs");
    }
}

#[test]
fn one_that_is_frozen_is_gone() {
    let cluster = Cluster::start("frozen", majors()[0]);
    let dir = cluster.dir().to_owned();
    assert!(runs(&dir));
    cluster.signal("STOP");
    drop(cluster);
    assert!(!runs(&dir) && !dir.exists());
}
