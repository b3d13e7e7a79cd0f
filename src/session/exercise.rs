//! The body of the fuzz target `framer`, replayed over its corpus by a test: any bytes, cut anywhere, are the same
//! frames; reading their fields stays inside them; and a pipeline always comes to its end.

use super::pipeline::{Expect, Pipeline, Reaction};
use crate::wire::{
    frame::{self, Backend, Fields, Frontend, HEADER},
    oids::{self, Oids},
};

/// The first byte chooses where the bytes are cut; the rest are the frames.
#[doc(hidden)]
pub fn exercise(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else { return };
    let whole = frames(data);
    let mut pieces = Vec::new();
    let mut arrived = 0;
    let mut taken = 0;
    while arrived < data.len() {
        arrived = data.len().min(arrived + usize::from(step) + 1);
        for frame in frames(&data[taken..arrived]) {
            taken += frame.len();
            pieces.push(frame);
        }
    }
    assert_eq!(pieces, whole, "what is cut depends on how the bytes arrive");
    for frame in &whole {
        fields(&frame[HEADER..]);
    }
    pipeline(&whole);
}

/// The whole frames that `data` begins with.
fn frames(mut data: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Ok(Some((tag, length))) = frame::header(data) {
        assert!(length >= HEADER && tag == data[0]);
        let Some((this, rest)) = data.split_at_checked(length) else { break };
        found.push(this);
        data = rest;
    }
    found
}

fn fields(body: &[u8]) {
    let mut fields = Fields(body);
    while let Ok(text) = fields.cstr() {
        assert!(!text.contains(&0));
    }
    if let Ok(text) = frame::query_text(body) {
        assert_eq!(text.len() + 1, body.len());
    }
    for code in [b'C', b'M', 0] {
        assert!(frame::error_field(body, code).is_none_or(|value| value.len() < body.len()));
    }
    let oids = Oids::from([(1, 2), (0x0101_0101, 3)]);
    let mut copy = body.to_vec();
    oids::row_description(&mut copy, &oids, &oids);
    oids::list(&mut copy, &oids);
    assert_eq!(copy.len(), body.len());
}

/// Frames whose body begins with an odd byte are the server's, the others the client's.
fn pipeline(frames: &[&[u8]]) {
    let mut pipeline = Pipeline::default();
    let (mut sent, mut lost) = (0, Vec::new());
    for frame in frames {
        let odd = frame.get(HEADER).is_some_and(|byte| byte % 2 == 1);
        if odd {
            let Some(message) = Backend::from_tag(frame[0]) else { continue };
            let own =
                pipeline.next().is_some_and(|e| matches!(e, Expect::Parse | Expect::Query | Expect::Sync));
            let reaction = pipeline.answered(message, &mut lost);
            assert!(
                !own || reaction == Reaction::Forward,
                "an answer to the client's own message is swallowed"
            );
        } else if let Some(expect) = Frontend::from_tag(frame[0]).and_then(expected) {
            pipeline.sent(expect);
            sent += 1;
        }
        while pipeline.own_answer().is_some() {}
    }
    assert!(lost.len() <= sent, "more is lost than was sent");
    pipeline.copy_ended();
    pipeline.sent(Expect::Sync);
    for _ in 0..=sent {
        pipeline.answered(Backend::Ready, &mut lost);
    }
    assert!(pipeline.is_idle(), "it does not come to its end");
}

fn expected(message: Frontend) -> Option<Expect> {
    match message {
        Frontend::Bind => Some(Expect::Bind),
        Frontend::Close => Some(Expect::OwnCloseComplete),
        Frontend::Describe => Some(Expect::Describe),
        Frontend::Execute => Some(Expect::Execute),
        Frontend::FunctionCall => Some(Expect::Function),
        Frontend::Parse => Some(Expect::Parse),
        Frontend::Query => Some(Expect::Query),
        Frontend::Sync => Some(Expect::Sync),
        Frontend::Flush => Some(Expect::HiddenParse),
        Frontend::Password => Some(Expect::OwnParseComplete),
        Frontend::CopyData | Frontend::CopyDone | Frontend::CopyFail | Frontend::Terminate => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_corpus_replays() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/framer")).unwrap();
        let inputs: Vec<Vec<u8>> = files.map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
        assert!(inputs.len() >= 10, "the corpus is gone");
        for input in &inputs {
            for cut in 0..=input.len() {
                exercise(&input[..cut]);
                // Every byte wrong, once.
                let mut wrong = input.clone();
                if let Some(byte) = wrong.get_mut(cut) {
                    *byte ^= 0x81;
                    exercise(&wrong);
                }
            }
        }
    }
}
