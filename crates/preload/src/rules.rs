//! The policy as gates and filters: [`Rules`], compiled from the facts of the channel.

use std::sync::Arc;

use msrgate_core::{ExitReasons, Image, MsrFilter, MsrHandler};
use msrgate_kvm::{HANDLERS, handlers};
use msrgate_policy::{Compiled, Options, Source, compile_recorded};
use msrgate_trace::{Facts, Observation, PolicySource};

/// One policy, for all VMs of this process.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) image: Arc<Image>,
    /// What the policy itself denies.
    pub(crate) enforced: MsrFilter,
    /// The same, and what is to be seen.
    pub(crate) filter: MsrFilter,
    pub(crate) reasons: ExitReasons,
}

impl Rules {
    /// Compiles the policy; `msrgate wrap` did so before, so a mistake is not the author's.
    pub(crate) fn compile(facts: &Facts) -> Result<Self, String> {
        let policy = facts.policies.first().ok_or("the channel has no policy")?;
        let includes: Vec<Source> = facts.includes.iter().map(source).collect();
        let compile = |observe| -> Result<Compiled, String> {
            let options = Options {
                handlers: HANDLERS,
                observe,
                ..Options::default()
            };
            let compiled = compile_recorded(&source(policy), &includes, &options).1;
            compiled.map_err(|mistakes| {
                let why = mistakes.first().map_or("", |mistake| &mistake.message);
                format!("the policy does not compile here: {why}")
            })
        };
        let enforced = compile(false)?;
        let compiled = match facts.observation {
            Some(Observation::Filter) => compile(true)?,
            _ => enforced.clone(),
        };
        Ok(Self {
            image: Arc::new(compiled.image),
            enforced: enforced.filter,
            filter: compiled.filter,
            reasons: compiled.reasons,
        })
    }

    /// What answers where the policy names a handler.
    pub(crate) fn handlers() -> Arc<[Arc<dyn MsrHandler>]> {
        handlers()
    }
}

fn source(kept: &PolicySource) -> Source {
    Source {
        name: kept.name.clone(),
        text: kept.text.clone(),
    }
}
