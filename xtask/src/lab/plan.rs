//! What runs in the lab, as a table: [`Plan`].

use std::time::Duration;

use super::platform::Platform;

/// A row of the lab's table.
#[derive(Clone)]
pub(super) enum Plan {
    /// A test of this workspace.
    Cargo(CargoTest),
    /// A selftest of the kernel.
    Linux(LinuxTest),
}

/// A test target of a package, and which of its tests.
#[derive(Clone)]
pub(super) struct CargoTest {
    pub(super) package: &'static str,
    /// The name of the test target, or of the library.
    pub(super) target: &'static str,
    /// libtest's arguments: the tests that touch KVM, where the others would only cost time.
    pub(super) arguments: &'static [&'static str],
    pub(super) limit: Duration,
    /// Where it runs, if not on both.
    platform: Option<Platform>,
    /// It boots a Linux in QEMU.
    boots_linux: bool,
    /// It compiles this C program of its own, for which the lab has no compiler.
    pub(super) client: Option<&'static str>,
}

/// A test of `tools/testing/selftests/kvm`.
#[derive(Clone)]
pub(super) struct LinuxTest {
    pub(super) test: &'static str,
    pub(super) way: Way,
}

/// How a selftest is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As the kernel's developers do.
    Plain,
    /// With `kvm.force_emulation_prefix`, which the test's other half wants.
    Forced,
    /// Under `msrgate wrap`, which watches what it can.
    Watched,
}

impl CargoTest {
    const fn new(package: &'static str, target: &'static str) -> Self {
        Self {
            package,
            target,
            arguments: &[],
            limit: Duration::from_secs(60),
            platform: None,
            boots_linux: false,
            client: None,
        }
    }

    const fn only(mut self, arguments: &'static [&'static str]) -> Self {
        self.arguments = arguments;
        self
    }

    const fn limit_s(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Not in Bochs: it takes too long there, or does not end.
    const fn amd(mut self) -> Self {
        self.platform = Some(Platform::Amd);
        self
    }

    const fn intel(mut self) -> Self {
        self.platform = Some(Platform::Intel);
        self
    }

    const fn with_client(mut self, name: &'static str) -> Self {
        self.client = Some(name);
        self
    }

    const fn with_linux(mut self) -> Self {
        self.boots_linux = true;
        self
    }
}

const USERSPACE_MSR_EXIT_TEST: &str = "x86_64/userspace_msr_exit_test";

pub(super) const LINUX_LIMIT: Duration = Duration::from_secs(60);

const PLANS: &[Plan] = &[
    Plan::Linux(LinuxTest {
        test: USERSPACE_MSR_EXIT_TEST,
        way: Way::Plain,
    }),
    Plan::Linux(LinuxTest {
        test: USERSPACE_MSR_EXIT_TEST,
        way: Way::Forced,
    }),
    Plan::Linux(LinuxTest {
        test: USERSPACE_MSR_EXIT_TEST,
        way: Way::Watched,
    }),
    Plan::Cargo(CargoTest::new("msrgate-kvm", "msrgate_kvm")),
    Plan::Cargo(CargoTest::new("msrgate-tests", "corpus").limit_s(600)),
    Plan::Cargo(CargoTest::new("msrgate-tests", "backend").only(&["kvm"])),
    Plan::Cargo(
        CargoTest::new("msrgate-tests", "replacement")
            .only(&["kvm"])
            .limit_s(120),
    ),
    Plan::Cargo(CargoTest::new("msrgate-tests", "pass_through").limit_s(180)),
    Plan::Cargo(
        CargoTest::new("msrgate-tests", "irqchip")
            .limit_s(180)
            .amd(),
    ),
    Plan::Cargo(
        CargoTest::new("msrgate-tests", "differential")
            .only(&["kvm"])
            .limit_s(180)
            .amd(),
    ),
    Plan::Cargo(
        CargoTest::new("msrgate-tests", "privileged")
            .limit_s(180)
            .amd(),
    ),
    Plan::Cargo(CargoTest::new("msrgate-tests", "policies").only(&["kvm"])),
    // TCG does passed-through writes differently from a processor: SYSENTER's are not cut, no address faults.
    Plan::Cargo(
        CargoTest::new("msrgate-tests", "explain")
            .only(&[
                "kvm",
                "--skip",
                "host_path_writes",
                "--skip",
                "observed_guest",
            ])
            .limit_s(180)
            .amd(),
    ),
    Plan::Cargo(
        CargoTest::new("msrgate-tests", "explain")
            .only(&["kvm::denied_deadline", "kvm::host_path"])
            .limit_s(180)
            .intel(),
    ),
    Plan::Cargo(
        CargoTest::new("msrgate-machine", "probe")
            .only(&["kvm"])
            .amd(),
    ),
    // kvm-amd resets a vCPU that shuts down, so the RIP of a triple fault is gone.
    Plan::Cargo(
        CargoTest::new("msrgate", "cli")
            .only(&["--skip", "triple_fault_is_one_line_with_rip"])
            .amd(),
    ),
    Plan::Cargo(CargoTest::new("msrgate", "example").amd()),
    Plan::Cargo(CargoTest::new("msrgate", "surface").limit_s(180).amd()),
    Plan::Cargo(CargoTest::new("msrgate", "trace").amd()),
    Plan::Cargo(CargoTest::new("msrgate", "observation").amd()),
    Plan::Cargo(CargoTest::new("msrgate-preload", "policy").with_client("vmm")),
    // KVM's tracepoint: the rest of it is the embedded KVM's.
    Plan::Cargo(CargoTest::new("msrgate", "collect").only(&["kvm"])),
    Plan::Cargo(
        CargoTest::new("msrgate", "run_linux")
            .only(&["debians_kernel"])
            .with_linux()
            .limit_s(200)
            .amd(),
    ),
    Plan::Cargo(
        CargoTest::new("msrgate", "linux")
            .with_linux()
            .limit_s(400)
            .amd(),
    ),
];

/// What there is to run on the platform.
pub(super) fn plans(platform: Platform) -> Vec<Plan> {
    let is_wanted = |plan: &&Plan| match plan {
        Plan::Cargo(test) => test.platform.is_none_or(|only| only == platform),
        Plan::Linux(_) => true,
    };
    PLANS.iter().filter(is_wanted).cloned().collect()
}

impl Plan {
    /// Its name in the table.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Cargo(test) => format!("{}::{}", test.package, test.target),
            Self::Linux(test) => match test.way {
                Way::Plain => test.name().to_owned(),
                Way::Forced => format!("{}, forced emulation", test.name()),
                Way::Watched => format!("{}, watched", test.name()),
            },
        }
    }

    /// Whether it needs what cargo builds.
    pub(super) fn needs_cargo(&self) -> bool {
        !matches!(self, Self::Linux(test) if test.way != Way::Watched)
    }

    /// Whether it needs QEMU and a Linux for it.
    pub(super) fn boots_linux(&self) -> bool {
        matches!(self, Self::Cargo(test) if test.boots_linux)
    }
}

impl LinuxTest {
    fn name(&self) -> &str {
        self.test.rsplit('/').next().unwrap_or(self.test)
    }
}
