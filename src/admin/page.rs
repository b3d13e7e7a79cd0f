//! The web page: one document that loads nothing from elsewhere. Live it asks `/state`; as a report it has the
//! answer inside.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use super::snapshot::Snapshot;

/// The page that asks `/state` every two seconds.
pub fn live() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| page(""));
    &PAGE
}

/// The same as a file, of one moment.
///
/// # Errors
/// Never, unless memory is out.
pub fn report(snapshot: &Snapshot) -> Result<String, serde_json::Error> {
    // No `</script>` in a text of a client's may end the element.
    Ok(page(&serde_json::to_string(snapshot)?.replace('<', r"\u003c")))
}

/// `Content-Security-Policy`: the page's own script and style, and questions to where it came from.
pub fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| format!("{}; frame-ancestors 'none'", in_page()));
    &POLICY
}

/// What of it a document may say itself.
fn in_page() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn page(state: &str) -> String {
    // The state comes last: what it holds is not looked at for places to fill.
    PAGE.replace("{{policy}}", &in_page())
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        .replace("{{state}}", state)
}

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str =
    concat!(include_str!("page.js"), include_str!("page_act.js"), include_str!("page_main.js"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::snapshot::{QueryRow, SHARES};

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for attribute in ["src=", "href=\"http", "@import", "url("] {
            assert!(!live().contains(attribute), "{attribute}");
        }
        // A namespace, not an address.
        let outside = live().matches("http://").count() + live().matches("https://").count();
        assert_eq!((outside, live().matches("http://www.w3.org/2000/svg").count()), (1, 1));
        assert!(!live().contains("{{") && !live().contains("innerHTML"));
    }

    #[test]
    fn a_clients_text_stays_text() {
        let query = QueryRow { sql: "SELECT '</script><script>{{style}}'".to_owned(), ..QueryRow::default() };
        let report = report(&Snapshot { slower: vec![query], ..Snapshot::default() }).unwrap();
        assert_eq!(report.matches("</script>").count(), 2);
        assert!(report.contains(r"\u003c/script>\u003cscript>{{style}}"));
    }

    #[test]
    fn the_script_knows_the_places_of_the_curves() {
        let list = SHARES.map(|share| share.to_string()).join(", ");
        assert!(SCRIPT.contains(&format!("const SHARES = [{list}];")), "{list}");
    }
}
