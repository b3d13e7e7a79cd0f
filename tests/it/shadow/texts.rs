//! Texts and errors: the second execution puts a transaction around what the client sent.

use super::{outcomes, shown, start};
use crate::support::{cluster::majors, needs_proxy};

/// A text ends as it likes, an error leaves the session as it was, and what one side cannot even parse is an error.
#[test]
fn texts_and_errors_of_every_shape() {
    needs_proxy!();
    let table = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (10)";
    // Postgres 15 cannot parse the underscore.
    let (newer, expected) = if majors().len() > 1 {
        ("SELECT id FROM t WHERE id = 1_0", "match 12, divergence 2")
    } else {
        ("SELECT id FROM t WHERE id = 10", "match 14")
    };
    for (name, target) in [("sh_shape_source", 0), ("sh_shape_target", 100)] {
        let proxy = start(name, [table, table], |s| {
            s.document_reads_target = target;
        });
        let mut client = proxy.client("alice");
        let plain = "SELECT id FROM t WHERE id = 1";
        let texts = [
            plain,
            "SELECT id FROM t WHERE id = 1 -- to the end",
            "SELECT id FROM t WHERE id = 1; /* and more */ ;",
            "SELECT 1 / (id - 1) FROM t WHERE id = 1",
            "SELECT nothing FROM t",
            newer,
            plain,
        ];
        for sql in texts {
            let _ = client.query(sql);
            let _ = client.execute(sql, &[]);
        }
        assert_eq!(outcomes(&proxy, 14.0), expected, "{name}\n{}", shown(&proxy));
    }
}
