//! Small readings of parse-tree nodes.

use pg_query::{Node, NodeEnum as N};

/// The text of a String node: a part of a name.
pub(super) fn text(node: &Node) -> Option<&str> {
    match &node.node {
        Some(N::String(string)) => Some(&string.sval),
        _ => None,
    }
}

/// The parts of a name.
pub(super) fn texts(nodes: &[Node]) -> Vec<&str> {
    nodes.iter().filter_map(text).collect()
}

/// Splits the parts of a name; a database in front is left out.
pub(super) fn qualified(nodes: &[Node]) -> Option<(&str, &str)> {
    match texts(nodes).as_slice() {
        [name] => Some(("", name)),
        [.., schema, name] => Some((schema, name)),
        [] => None,
    }
}

/// The text of a string literal, casts looked through.
pub(super) fn literal(node: &Node) -> Option<&str> {
    use pg_query::protobuf::a_const::Val;
    match &node.node {
        Some(N::AConst(constant)) => match &constant.val {
            Some(Val::Sval(string)) => Some(&string.sval),
            Some(Val::Ival(_) | Val::Fval(_) | Val::Boolval(_) | Val::Bsval(_)) | None => None,
        },
        Some(N::TypeCast(cast)) => cast.arg.as_deref().and_then(literal),
        _ => None,
    }
}
