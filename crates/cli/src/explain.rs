//! `msrgate explain`: what a guest sees of one MSR under a policy, step by step.
//!
//! What KVM itself makes of the MSR is found out here, each time by a guest of its own that has done nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use msrgate_core::{ExitReason, MsrIndex, Vcpu, Vm};
use msrgate_kvm::HANDLERS;
use msrgate_machine::{Probe, ProbeError, Seen, guest_memory};
use msrgate_policy::{
    Compiled, Explanation, Instruction, KvmAnswer, KvmAnswers, Options, Sees, Sources, Stage,
};
use serde::Serialize;

use crate::Status;
use crate::backend::{self, Backend, Choice, Need, Processor};
use crate::output;
use crate::policy::compile_from;

/// Say what a guest sees of an MSR under a policy, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The policy file
    policy: PathBuf,
    /// The MSR: a name or an index, such as IA32_EFER or 0xc0000080
    msr: MsrIndex,
    /// What the guest writes, such as 0xd01 [default: what it reads, or else 0]
    #[arg(long, value_parser = parse_value)]
    value: Option<u64>,
    /// Who is asked what KVM itself does
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    backend: Choice,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let options = Options {
        handlers: HANDLERS,
        ..Options::default()
    };
    let name = args.policy.display().to_string();
    let file =
        File::open(&args.policy).with_context(|| format!("cannot read the policy {name}"))?;
    let compiled = compile_from(&name, file, &options)?;
    let mut host = Host::open(args.backend)?;
    let read = compiled.explain(Instruction::Rdmsr(args.msr), &mut host);
    let value = args.value.unwrap_or(match read.sees {
        Sees::Value(value) => value,
        _ => 0,
    });
    let write = compiled.explain(Instruction::Wrmsr(args.msr, value), &mut host);
    if let Some(error) = host.error {
        return Err(error).context("the guest that is to try the MSR failed");
    }
    let report = Report {
        args,
        backend: host.name,
        compiled: &compiled,
        sources: &compiled.sources,
        explanations: [read, write],
    };
    if args.json {
        report.write_json(&mut io::stdout().lock())?;
    } else {
        report.write_text(&mut anstream::AutoStream::auto(io::stdout().lock()))?;
    }
    Ok(Status::Done)
}

/// A number as the language writes it.
fn parse_value(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.map_err(|_| "not a number of at most 64 bits, such as 0x1f or 31".to_owned())
}

/// Asks guests of their own what KVM does.
struct Host {
    name: &'static str,
    choice: Choice,
    ignore_msrs: Option<bool>,
    /// The first thing that went wrong; nothing is asked any more.
    error: Option<anyhow::Error>,
}

impl Host {
    fn open(choice: Choice) -> anyhow::Result<Self> {
        let (backend, _) = backend::open(
            choice,
            Need::Bare,
            Processor::Host,
            &guest_memory(MEMORY_BYTES)?,
        )?;
        Ok(Self {
            name: backend.name(),
            choice,
            ignore_msrs: match backend {
                Backend::Kvm(_) => msrgate_kvm::ignore_msrs(),
                Backend::Soft(_) => None,
            },
            error: None,
        })
    }

    fn ask(&mut self, question: Question) -> KvmAnswer {
        let answer = match self.error {
            Some(_) => return KvmAnswer::NotTried,
            None => answer(self.choice, question),
        };
        answer.unwrap_or_else(|error| {
            self.error = Some(error);
            KvmAnswer::NotTried
        })
    }
}

impl KvmAnswers for Host {
    fn rdmsr(&mut self, index: MsrIndex) -> KvmAnswer {
        self.ask(Question::Guest(Instruction::Rdmsr(index)))
    }

    fn wrmsr(&mut self, index: MsrIndex, value: u64) -> KvmAnswer {
        self.ask(Question::Guest(Instruction::Wrmsr(index, value)))
    }

    fn get_msr(&mut self, index: MsrIndex) -> KvmAnswer {
        self.ask(Question::GetMsr(index))
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> KvmAnswer {
        self.ask(Question::SetMsr(index, value))
    }

    fn ignore_msrs(&self) -> Option<bool> {
        self.ignore_msrs
    }

    fn writes_before_filter(&self, index: MsrIndex) -> Option<bool> {
        match self.name {
            "kvm" => msrgate_kvm::writes_before_filter(index),
            _ => Some(false),
        }
    }
}

/// Enough for the probe's guest.
const MEMORY_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy)]
enum Question {
    Guest(Instruction),
    GetMsr(MsrIndex),
    SetMsr(MsrIndex, u64),
}

fn answer(choice: Choice, question: Question) -> anyhow::Result<KvmAnswer> {
    let memory = guest_memory(MEMORY_BYTES)?;
    match backend::open(choice, Need::Bare, Processor::Host, &memory)?.0 {
        Backend::Kvm(vm) => ask(Probe::new(vm, &memory)?, question),
        Backend::Soft(vm) => ask(Probe::new(vm, &memory)?, question),
    }
}

fn ask<V: Vm>(mut probe: Probe<V>, question: Question) -> anyhow::Result<KvmAnswer> {
    let refused = KvmAnswer::Refused(ExitReason::NONE);
    let seen = match question {
        Question::Guest(Instruction::Rdmsr(index)) => probe.rdmsr(index),
        Question::Guest(Instruction::Wrmsr(index, value)) => probe.wrmsr(index, value),
        Question::GetMsr(index) => {
            let value = probe.vcpu().get_msr(index)?;
            return Ok(value.map_or(refused, KvmAnswer::Value));
        }
        Question::SetMsr(index, value) => {
            let taken = probe.vcpu().set_msr(index, value)?;
            return Ok(if taken { KvmAnswer::Done } else { refused });
        }
    };
    match seen {
        Ok(Seen::Value(value)) => Ok(KvmAnswer::Value(value)),
        Ok(Seen::Done) => Ok(KvmAnswer::Done),
        Ok(Seen::Gp) => Ok(KvmAnswer::Gp),
        Ok(Seen::Refused(reason)) => Ok(KvmAnswer::Refused(reason)),
        Err(ProbeError::Ended { .. }) => Ok(KvmAnswer::Ended),
        Err(error) => Err(error.into()),
    }
}

/// Counts up when a key changes its meaning or goes away.
const JSON_VERSION: u32 = 1;

/// Columns of a line.
const WIDTH: usize = 80;
/// Columns before what happens at a station.
const INDENT: usize = 15;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Both directions of one MSR.
struct Report<'a> {
    args: &'a Args,
    backend: &'static str,
    compiled: &'a Compiled,
    sources: &'a Sources,
    explanations: [Explanation; 2],
}

impl Report<'_> {
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let index = self.args.msr;
        match index.name() {
            Some(name) => write!(out, "{BOLD}{name}{BOLD:#} ({index})")?,
            None => write!(out, "{BOLD}{index}{BOLD:#}")?,
        }
        writeln!(out, " on {}", self.backend)?;
        for explanation in &self.explanations {
            self.write_direction(out, explanation)?;
        }
        Ok(())
    }

    fn write_direction(&self, out: &mut dyn Write, explanation: &Explanation) -> io::Result<()> {
        match explanation.instruction {
            Instruction::Rdmsr(_) => writeln!(out, "\n{BOLD}rdmsr{BOLD:#}")?,
            Instruction::Wrmsr(_, value) => writeln!(out, "\n{BOLD}wrmsr{BOLD:#} {value:#x}")?,
        }
        for step in explanation.steps(self.compiled, self.sources) {
            let style = match (step.stage, explanation.sees) {
                (Stage::Result, Sees::Gp | Sees::Ended) => AnsiColor::Red.on_default().bold(),
                (Stage::Result, _) => AnsiColor::Green.on_default().bold(),
                _ => Style::new(),
            };
            let lines = textwrap::wrap(&step.text, WIDTH - INDENT);
            for (number, line) in lines.iter().enumerate() {
                let stage = if number == 0 { step.stage.word() } else { "" };
                let label = INDENT - 4;
                writeln!(out, "  {DIM}{stage:label$}{DIM:#}  {style}{line}{style:#}")?;
            }
        }
        Ok(())
    }

    /// The same as JSON.
    fn write_json(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let [read, write] = &self.explanations;
        let json = Json {
            version: JSON_VERSION,
            msr: self.args.msr.to_string(),
            name: self.args.msr.name(),
            backend: self.backend,
            rdmsr: self.json_direction(read),
            wrmsr: self.json_direction(write),
        };
        output::write_json(out, &json)
    }

    fn json_direction(&self, explanation: &Explanation) -> JsonDirection {
        let (sees, value) = match explanation.sees {
            Sees::Value(value) => ("value", Some(value)),
            Sees::Written => ("written", None),
            Sees::Kept(value) => ("kept", Some(value)),
            Sees::Dropped => ("dropped", None),
            Sees::Gp => ("gp", None),
            Sees::Ended => ("ended", None),
            Sees::Handler => ("handler", None),
            _ => ("unknown", None),
        };
        let hex = |value: u64| format!("{value:#x}");
        let steps = explanation.steps(self.compiled, self.sources).into_iter();
        JsonDirection {
            written: match explanation.instruction {
                Instruction::Rdmsr(_) => None,
                Instruction::Wrmsr(_, value) => Some(hex(value)),
            },
            sees,
            value: value.map(hex),
            steps: steps
                .map(|step| JsonStep {
                    stage: step.stage.word(),
                    text: step.text,
                })
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct Json {
    version: u32,
    msr: String,
    name: Option<&'static str>,
    backend: &'static str,
    rdmsr: JsonDirection,
    wrmsr: JsonDirection,
}

#[derive(Serialize)]
struct JsonDirection {
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
    sees: &'static str,
    value: Option<String>,
    steps: Vec<JsonStep>,
}

#[derive(Serialize)]
struct JsonStep {
    stage: &'static str,
    text: String,
}
