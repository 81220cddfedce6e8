//! The configuration's own sources, as one workload beside those that are discovered.
//! Place: within **discover**. Its declarations are the configuration's `sources`, not read from it.
//! Invariant: told once, never gone; its paths are the host's own.

use tokio::sync::mpsc;

use super::{Heard, Runtime, State, Stdout, Workload};

/// The one id there is.
pub const ID: &str = "static";

/// The host itself, as the workload whose declarations are the configuration's `sources`.
#[must_use]
pub fn workload() -> Workload {
    Workload {
        runtime: Runtime::Static,
        id: ID.to_owned(),
        name: String::new(),
        labels: Default::default(),
        annotations: Default::default(),
        environment: Vec::new(),
        mounts: Vec::new(),
        stdout: Stdout::None(
            "a source of the configuration has no stdout: give it a `path`".to_owned(),
        ),
        roots: Vec::new(),
        pid: 0,
        created_ns: 0,
        state: State::Running,
        pod: None,
    }
}

/// Tells the configuration's sources, and that they are all.
pub async fn tell(heard: mpsc::Sender<Heard>) {
    let here = Heard::Here(Box::new(workload()));
    if heard.send(here).await.is_ok() {
        // No receiver: nobody is left to be told.
        drop(heard.send(Heard::Listed(Runtime::Static)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_configurations_sources_are_told_once_and_then_that_they_are_all() {
        let (sender, mut heard) = mpsc::channel(8);
        tell(sender).await;
        assert_eq!(heard.recv().await, Some(Heard::Here(Box::new(workload()))));
        assert_eq!(heard.recv().await, Some(Heard::Listed(Runtime::Static)));
        assert_eq!(heard.recv().await, None);
    }
}
