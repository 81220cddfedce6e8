//! The daemon's end of the control socket: what it does when it is told to.
//! Place: beside the status on the same socket, never on TCP.
//! Invariants: an order is carried out also when who gave it has gone; one of a kind at a time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::Refused;
use super::reload::Reloader;
use super::tap::{Asked, Taps};
use crate::daemon::Daemon;
use crate::pipeline::Pipeline;
use crate::problem::use_instead;
use crate::ship::dead_letter::{DeadLetterFiles, resend};

/// What orders are carried out with.
#[derive(Debug)]
pub struct Control {
    pipeline: Arc<Pipeline>,
    letters: Arc<DeadLetterFiles>,
    reloader: Option<Arc<Reloader>>,
    taps: Arc<Taps>,
}

impl Control {
    /// The control of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon, reloader: Option<Arc<Reloader>>) -> Arc<Self> {
        Arc::new(Self {
            pipeline: Arc::clone(&daemon.pipeline),
            letters: Arc::clone(&daemon.dead_letters),
            reloader,
            taps: daemon.shipping().taps(),
        })
    }
}

/// The orders, for who may give them.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/control/dead-letters/{output}/retry", post(retry))
        .route("/control/reload", post(reload))
        .route("/control/tap", get(tap))
        .with_state(control)
}

fn refused(cause: impl Into<String>, cure: impl Into<String>, exit: u8) -> Response {
    let refused = Refused {
        cause: cause.into(),
        cure: cure.into(),
        exit,
    };
    (StatusCode::CONFLICT, Json(refused)).into_response()
}

/// Sends an output's dead letters again.
async fn retry(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Response {
    let Some(route) = control.pipeline.route_of(&name) else {
        let names = control.pipeline.output_names();
        let known: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        return refused(
            format!("no output is called `{name}` now"),
            format!("{}, or configure it again", use_instead(&name, &known)),
            1,
        );
    };
    let letters = Arc::clone(&control.letters);
    // A task of its own: it ends also when who asked has gone.
    let sent = tokio::spawn(async move {
        resend(&letters, &name, &route.output, route.codec, route.timeout).await
    });
    match sent.await {
        Ok(Ok(resent)) => Json(resent).into_response(),
        Ok(Err(cause)) => refused(cause, "mend what it names, and call this again", 1),
        Err(error) => refused(
            format!("it was not carried out: {error}"),
            "see the daemon's log",
            1,
        ),
    }
}

/// Reads the configuration again.
async fn reload(State(control): State<Arc<Control>>) -> Response {
    let Some(reloader) = control.reloader.clone() else {
        return refused(
            "this daemon has no configuration to reload",
            "start one with `ringpilot run`",
            1,
        );
    };
    let done = tokio::spawn(async move { reloader.reload().await });
    match done.await {
        Ok(Ok(changed)) => Json(changed).into_response(),
        Ok(Err(problems)) => {
            let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
            refused(
                format!(
                    "the new configuration is refused, the old one goes on: {}",
                    told.join("; ")
                ),
                "mend it and reload again; `ringpilot check` tells all that is wrong",
                2,
            )
        }
        Err(error) => refused(
            format!("it was not carried out: {error}"),
            "see the daemon's log",
            1,
        ),
    }
}

/// Shows records as they leave, until who asked goes away.
async fn tap(State(control): State<Arc<Control>>, Query(asked): Query<Asked>) -> Response {
    if !asked.output.is_empty() && control.pipeline.slot_of(&asked.output).is_none() {
        let names = control.pipeline.output_names();
        let known: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        let cause = format!("no output is called `{}`", asked.output);
        return refused(cause, use_instead(&asked.output, &known), 2);
    }
    let Some(reads) = control.taps.open(asked) else {
        return refused("too many look on already", "end another `ringpilot tap`", 1);
    };
    let lines = futures_util::stream::unfold(reads, |mut reads| async {
        let line = reads.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), reads))
    });
    Body::from_stream(lines).into_response()
}
