//! A channel as `msrgate wrap` gives it to a program.

use std::os::fd::AsRawFd;
use std::process::Command;

use msrgate_trace::channel::{Channel, Rings};
use msrgate_trace::{Facts, Observation, PolicySource};
use rustix::io::{FdFlags, fcntl_setfd};

/// Puts the program under a policy. It lives as long as the channel.
pub(crate) fn give(
    command: &mut Command,
    policy: &str,
    observation: Observation,
    rings: Rings,
) -> Channel {
    let facts = Facts {
        observation: Some(observation),
        policies: vec![PolicySource {
            name: "policy.toml".to_owned(),
            text: policy.to_owned(),
        }],
        ..Facts::default()
    };
    let channel = Channel::create(&facts, rings).expect("a channel");
    fcntl_setfd(channel.file(), FdFlags::empty()).expect("the descriptor is open");
    command.env("MSRGATE_CHANNEL", channel.file().as_raw_fd().to_string());
    channel
}
