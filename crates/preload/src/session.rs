//! What `msrgate wrap` asks of this process: [`Session`], from the environment.
//!
//! | variable | is |
//! |---|---|
//! | `MSRGATE_KVM` | what stands behind /dev/kvm: `real` or `soft`; without it this library does nothing |
//! | `MSRGATE_CHANNEL` | the descriptor of the channel, with the policy; without it KVM's behaviour is its own |
//! | `MSRGATE_ON_FAILURE` | `deny` or `pass`: what an access gets if the gate fails |

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, LazyLock, OnceLock};
use std::{env, fmt};

use msrgate_trace::channel::Channel;

use crate::real;
use crate::rules::Rules;

/// What stands behind /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    Real,
    Soft,
}

/// What an access gets that the gate failed at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// #GP.
    #[default]
    Deny,
    /// What KVM makes of it.
    Pass,
}

impl OnFailure {
    /// For a message.
    pub(crate) const fn gives(self) -> &'static str {
        match self {
            Self::Deny => "#GP",
            Self::Pass => "what KVM makes of it",
        }
    }
}

/// What is asked of this process, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) kvm: Kvm,
    pub(crate) on_failure: OnFailure,
    /// Where the policy is and events go; `Err`: it was promised, and is not there.
    channel: Option<Result<Channel, String>>,
    rules: OnceLock<Result<Arc<Rules>, String>>,
}

/// The session of this process, if it is wrapped.
pub(crate) fn session() -> Option<&'static Session> {
    static SESSION: LazyLock<Option<Session>> = LazyLock::new(Session::from_environment);
    SESSION.as_ref()
}

impl Session {
    fn from_environment() -> Option<Self> {
        let kvm = match env::var_os("MSRGATE_KVM")?.to_str()? {
            "real" => Kvm::Real,
            "soft" => Kvm::Soft,
            _ => return None,
        };
        let on_failure = env::var_os("MSRGATE_ON_FAILURE");
        Some(Self {
            kvm,
            on_failure: match on_failure {
                Some(word) if word == "pass" => OnFailure::Pass,
                _ => OnFailure::Deny,
            },
            channel: env::var_os("MSRGATE_CHANNEL").map(|number| {
                let number = number.to_str().and_then(|number| number.parse().ok());
                open_channel(number).map_err(|why| format!("the policy cannot be reached: {why}"))
            }),
            rules: OnceLock::new(),
        })
    }

    /// Whether there is a policy, reachable or not.
    pub(crate) const fn has_policy(&self) -> bool {
        self.channel.is_some()
    }

    /// The channel, if it can be reached.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()?.as_ref().ok()
    }

    /// The channel's descriptor in this process.
    pub(crate) fn channel_fd(&self) -> Option<RawFd> {
        Some(self.channel()?.file().as_raw_fd())
    }

    /// The policy, which is compiled when the first VM is made; `None` where there is none.
    pub(crate) fn rules(&self) -> Option<Result<&Arc<Rules>, &str>> {
        let channel = match self.channel.as_ref()? {
            Ok(channel) => channel,
            Err(why) => return Some(Err(why)),
        };
        let rules = self
            .rules
            .get_or_init(|| Rules::compile(channel.facts()).map(Arc::new));
        Some(rules.as_ref().map_err(String::as_str))
    }
}

/// Tells whoever looks at the program's standard error.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    // Where that is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "msrgate: {message}");
}

fn open_channel(number: Option<i32>) -> Result<Channel, String> {
    let number = number.ok_or("MSRGATE_CHANNEL is not a number")?;
    // The program may close its own, and so may those that it starts need it.
    let file = real::duplicate(number).map_err(|errno| {
        format!(
            "descriptor {number} is closed ({errno}); what starts the program must leave it open"
        )
    })?;
    Channel::open(File::from(file)).map_err(|error| error.to_string())
}
