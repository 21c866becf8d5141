//! `msrgate schema`: what a policy file looks like, as JSON Schema, for editors.

use std::io::{self, Write};

use crate::Status;

/// Print the JSON Schema of the policy file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

const SCHEMA: &str = include_str!("../../../docs/policy.schema.json");

pub(crate) fn run(_args: &Args) -> anyhow::Result<Status> {
    io::stdout().lock().write_all(SCHEMA.as_bytes())?;
    Ok(Status::Done)
}
