//! Edits of `proxy.toml`, as a person makes them.

use std::path::Path;

use crate::observe::Result;

/// Sets `key` of these repositories to `value`; returns the new line. `None`: of all of them.
pub(crate) fn set(config: &Path, repository: Option<&str>, key: &str, value: &str) -> Result<String> {
    let text = std::fs::read_to_string(config)?;
    let line = format!("{key} = {value}");
    let (mut section, mut name, mut changed) = ("", "", 0);
    let mut lines: Vec<&str> = text.lines().collect();
    for old in &mut lines {
        if old.starts_with('[') {
            section = old;
        } else if let Some(named) = old.strip_prefix("name = ") {
            name = named.trim_matches('"');
        } else if section == "[[repository]]"
            && repository.is_none_or(|wanted| wanted == name)
            && old.starts_with(&format!("{key} = "))
        {
            *old = &line;
            changed += 1;
        }
    }
    if changed == 0 {
        return Err(format!("{} has no line {key} = ... to edit", config.display()).into());
    }
    let edited = lines.join("\n") + "\n";
    if edited != text {
        write(config, &edited)?;
    }
    Ok(line)
}

/// As editors do: a new file under the old name, with the old one's mode.
pub(crate) fn write(config: &Path, text: &str) -> Result<()> {
    let new = config.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::set_permissions(&new, std::fs::metadata(config)?.permissions())?;
    std::fs::rename(&new, config)?;
    Ok(())
}
