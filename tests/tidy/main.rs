//! Rules about the code and the documents themselves, in plain text: what clippy cannot say.

mod code;
mod documents;

use std::{path::Path, process::Command};

/// A tracked text file: path from the root of the project, and contents.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| e == extension)
    }
}

/// The root of the project.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All text files of the project: what git tracks, or, without git, everything but what is built.
fn files() -> Vec<File> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            text.split('\0').filter(|p| !p.is_empty()).map(str::to_owned).collect()
        }
        _ => walk(root()),
    };
    paths.sort();
    let read = |path: String| Some(File { text: std::fs::read_to_string(root().join(&path)).ok()?, path });
    let files: Vec<File> = paths.into_iter().filter_map(read).collect();
    assert!(files.len() > 100, "only {} files were found", files.len());
    files
}

fn walk(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && !["target", ".git", "node_modules"].contains(&name.as_str()) {
            found.extend(walk(&path));
        } else if path.is_file()
            && let Ok(path) = path.strip_prefix(root())
        {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    found
}

/// Fails with all that was found, one a line.
#[track_caller]
fn nothing(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}\n{}", found.join("\n"));
}
