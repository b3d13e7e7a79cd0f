//! What the web page may ask for when it knows `admin.token`: `POST /act`, JSON in and out.
//!
//! No other page can make a browser send it: the header that it needs is sent across origins only after a question
//! that is not answered here.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Json,
    extract::{State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::http::{HttpState, PRIVATE};
use crate::{Side, config::Token, report::metrics::BoxFuture};

/// What is asked for. Weights are not among it: they belong to the file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum Action {
    /// Nothing: is the token right?
    Nothing {},
    /// Load the configuration again.
    Reload {},
    /// Send no new work to these backends; done when what ran there has ended.
    Pause {
        /// Which.
        side: Sides,
    },
    /// Undo it.
    Resume {
        /// Which.
        side: Sides,
    },
    /// Forget what shadow reads have found about a repository.
    Forget {
        /// Its name.
        repository: String,
    },
}

/// One backend or both.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Sides {
    /// The source.
    Source,
    /// The target.
    Target,
    /// Both.
    Both,
}

impl Sides {
    /// As the console has it: none is both.
    pub fn only(self) -> Option<Side> {
        match self {
            Sides::Source => Some(Side::Source),
            Sides::Target => Some(Side::Target),
            Sides::Both => None,
        }
    }
}

/// Does it: a sentence on what was done, or why not.
pub type Act = Arc<dyn Fn(Action) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// `admin.token` as it is now.
pub type Tokens = Arc<dyn Fn() -> Option<Token> + Send + Sync>;

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Done(String),
    Error(String),
}

pub(super) async fn act(
    State(state): State<HttpState>,
    Extension(peer): Extension<SocketAddr>,
    headers: HeaderMap,
    action: Result<Json<Action>, JsonRejection>,
) -> Response {
    // Who may not act does not hear what was wrong with the question either.
    if let Err((status, why)) = allowed((state.token)().as_ref(), &headers) {
        tracing::warn!(%peer, why, "an action was refused");
        let challenge =
            (status == StatusCode::UNAUTHORIZED).then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
        return (status, challenge, PRIVATE, Json(Answer::Error(why.to_owned()))).into_response();
    }
    let action = match action {
        Ok(Json(action)) => action,
        Err(wrong) => {
            return (wrong.status(), PRIVATE, Json(Answer::Error(wrong.body_text()))).into_response();
        }
    };
    if action == (Action::Nothing {}) {
        return (PRIVATE, Json(Answer::Done("the token is right".to_owned()))).into_response();
    }
    tracing::info!(%peer, ?action, "action by HTTP");
    match (state.act)(action.clone()).await {
        Ok(done) => (PRIVATE, Json(Answer::Done(done))).into_response(),
        Err(why) => {
            tracing::warn!(%peer, ?action, why, "action by HTTP failed");
            (StatusCode::CONFLICT, PRIVATE, Json(Answer::Error(why))).into_response()
        }
    }
}

fn allowed(token: Option<&Token>, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let Some(token) = token else {
        return Err((
            StatusCode::FORBIDDEN,
            "this instance takes no actions by HTTP: admin.token is not set",
        ));
    };
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err((StatusCode::UNAUTHORIZED, "say admin.token as Authorization: Bearer"));
    };
    let given = value.as_bytes().split_first_chunk::<7>();
    match given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")) {
        Some((_, given)) if token.is(given) => Ok(()),
        Some(_) => Err((StatusCode::FORBIDDEN, "this is not admin.token")),
        None => Err((StatusCode::UNAUTHORIZED, "say admin.token as Authorization: Bearer")),
    }
}
