//! `[telemetry]`

use super::part::Checker;
use crate::config::{Endpoint, Telemetry};

impl Checker<'_> {
    pub(super) fn telemetry(&self) -> Telemetry {
        let part = self.section("telemetry");
        let endpoint = part.text("otlp_endpoint").filter(|text| !text.is_empty());
        if endpoint.is_some() && !cfg!(feature = "otlp") {
            let hint = Some("build it with cargo build --release --features otlp".to_owned());
            part.mistake("otlp_endpoint", "this binary was built without OTLP", hint);
        }
        let endpoint = endpoint.and_then(|text| match Endpoint::parse(&text) {
            Ok(endpoint) => Some(endpoint),
            Err(why) => {
                part.mistake("otlp_endpoint", why, None);
                None
            }
        });
        let spans = part.fraction_share("otlp_spans");
        Telemetry { endpoint, interval: part.duration("otlp_interval"), spans }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, authority, base) in [
            ("http://127.0.0.1:4318", "127.0.0.1:4318", ""),
            ("http://collector", "collector:4318", ""),
            ("http://[::1]/otlp/", "[::1]:4318", "/otlp"),
            ("http://collector:80/a/b", "collector:80", "/a/b"),
        ] {
            let expected = Endpoint { authority: authority.to_owned(), base: base.to_owned() };
            assert_eq!(Endpoint::parse(text), Ok(expected), "{text}");
        }
        for text in [
            "collector:4318",
            "https://collector",
            "http://",
            "http://a@b",
            "http://::1",
            "http://a b",
            "http://a:x",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
