//! Take everything and keep nothing: to measure what the rest costs, and for outputs that are only counted.
//! Place: batch -> **ship::null**. The pipeline's own numbers say how much it was, for each target.

use std::future::{Future, ready};
use std::pin::Pin;

use serde::Deserialize;

use super::{Fate, Guarantee, Load, Output, Verdict};
use crate::problem::Problem;
use crate::settings::{OutputSettings, from_value};

/// It has no keys of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {}

/// The output that keeps nothing: types `null` and `count`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullOutput;

impl NullOutput {
    /// An output as set.
    ///
    /// # Errors
    /// When a key is set: it has none of its own.
    pub fn new(settings: &OutputSettings) -> Result<Self, Vec<Problem>> {
        if !settings.settings.is_null() {
            from_value::<Written>(&settings.settings, &settings.path()).map_err(|one| vec![one])?;
        }
        Ok(Self)
    }
}

impl Output for NullOutput {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn ordered(&self) -> bool {
        false
    }

    fn attempt<'a>(&'a self, _: &'a Load) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(ready(Verdict::All(Fate::Delivered)))
    }

    fn probe(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_no_keys_of_its_own() {
        let of = |yaml: &str| {
            let settings = serde_yaml_ng::from_str(yaml).expect("the test's own YAML");
            NullOutput::new(&OutputSettings::of("null", settings))
        };
        assert!(of("{}").is_ok());
        assert!(of("~").is_ok());
        let problems = of("{path: /x}").expect_err("a key");
        assert_eq!(problems[0].key, "outputs.null.path");
    }
}
