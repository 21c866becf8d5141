//! The corpus on core's own words: no VM, no guest, only the rules.

use msrgate_core::{
    Access, DecisionSource, Disposition, Errno, ExitReasons, FILTER_BYTES_32, FILTER_BYTES_64,
    MsrFilter, MsrIndex, RawFilter, UnknownMsrs, Verdict,
};
use msrgate_tests::case::{
    Caller, Case, EnableCap, Exception, Filter, GuestAccess, On, Pointer, Request, Step,
};
use msrgate_tests::guest::Routine;
use msrgate_tests::image::Image;

use crate::Trouble;

/// A form of the filter: the verdict, and who gave it if the form can tell.
pub(crate) trait Decide:
    Fn(&MsrFilter, MsrIndex, Access) -> (Verdict, Option<DecisionSource>)
{
}

impl<F: Fn(&MsrFilter, MsrIndex, Access) -> (Verdict, Option<DecisionSource>)> Decide for F {}

/// What a VM is, as far as the rules go.
struct Model<F> {
    reasons: ExitReasons,
    filter: Option<MsrFilter>,
    decide: F,
}

/// An address that the model's caller has memory at.
const WINDOW: u64 = 0x5555_0000;

/// Runs one case; `decide` is the form of the filter under test, which may not know who decided.
pub(crate) fn run(case: &Case, decide: impl Decide) -> Result<(), Trouble> {
    let mut model = Model {
        reasons: ExitReasons::NONE,
        filter: None,
        decide,
    };
    case.steps.iter().try_for_each(|step| model.step(step))
}

impl<F: Decide> Model<F> {
    fn step(&mut self, step: &Step) -> Result<(), Trouble> {
        match step {
            Step::Mask(mask) => {
                let reasons = ExitReasons::from_mask((*mask).into());
                self.reasons = reasons.map_err(|error| mismatch(&error))?;
                Ok(())
            }
            Step::EnableCap(cap) => self.enable_cap(cap),
            Step::Filter(filter) => self.set_filter(filter),
            Step::Rdmsr(access) => self.access(access, Access::Read),
            Step::Wrmsr(access) => self.access(access, Access::Write),
            Step::CheckExtension(_) => Err(Trouble::Unsupported("no descriptors")),
            Step::SideEffect(_) => Err(Trouble::Unsupported("no instructions")),
            Step::HostGet(_) | Step::HostSet(_) => Err(Trouble::Unsupported("no MSRs")),
        }
    }

    fn enable_cap(&mut self, cap: &EnableCap) -> Result<(), Trouble> {
        let plain = cap.cap == 188 && cap.flags == 0 && cap.pointer == Pointer::Aligned;
        if !plain || cap.on != On::Vm || cap.caller == Caller::Child {
            return Err(Trouble::Unsupported("no descriptors"));
        }
        let answer = ExitReasons::from_mask(cap.mask.0);
        if let Ok(reasons) = answer {
            self.reasons = reasons;
        }
        expect_errno(
            answer.err().map(|_| Errno::EINVAL),
            cap.errno.map(|name| name.0),
        )
    }

    fn set_filter(&mut self, filter: &Filter) -> Result<(), Trouble> {
        let is_native_compat = filter.request == Request::Compat && filter.caller != Caller::Compat;
        if is_native_compat || filter.on != On::Vm || filter.caller == Caller::Child {
            return Err(Trouble::Unsupported("no descriptors"));
        }
        let answer = read_filter(filter);
        let errno = answer.as_ref().err().copied();
        if let Ok(filter) = answer {
            self.filter = Some(filter);
        }
        expect_errno(errno, filter.errno.map(|name| name.0))
    }

    fn access(&mut self, access: &GuestAccess, direction: Access) -> Result<(), Trouble> {
        let routine = access.routine(direction);
        let expected = match (access.exit, access.raises) {
            (Some(reason), _) => Disposition::Exit(reason.reason()),
            (None, Some(Exception::Gp)) => Disposition::InjectGp,
            _ => Disposition::Native,
        };
        match routine {
            Routine::UserRdmsr | Routine::UserWrmsr | Routine::LockRdmsr | Routine::LockWrmsr => {
                return Err(Trouble::Unsupported("no privilege and no decoder"));
            }
            _ => {}
        }
        let (verdict, source) = self.decide(MsrIndex(access.index), direction);
        let emulate = || access.emulation();
        let found = Disposition::of(verdict, emulate, UnknownMsrs::Fail, self.reasons);
        if found != expected {
            let text = format!(
                "{:#x} {direction}: {found:?}, not {expected:?}",
                access.index
            );
            return Err(Trouble::Mismatch(text));
        }
        let by = source.map(source_name);
        if access.by.is_some() && by.is_some() && access.by != by {
            let text = format!("{:#x} {direction}: decided by {by:?}", access.index);
            return Err(Trouble::Mismatch(text));
        }
        access.meanwhile.iter().try_for_each(|step| self.step(step))
    }

    fn decide(&self, index: MsrIndex, access: Access) -> (Verdict, Option<DecisionSource>) {
        match &self.filter {
            Some(filter) => (self.decide)(filter, index, access),
            None if index.is_x2apic() => (Verdict::Allow, Some(DecisionSource::Exempt)),
            None => (Verdict::Allow, Some(DecisionSource::NoFilter)),
        }
    }
}

/// The ioctl's way from the caller's memory to a filter.
fn read_filter(filter: &Filter) -> Result<MsrFilter, Errno> {
    let image = Image::new(filter, WINDOW);
    let raw = match filter.request {
        Request::Native => {
            let mut bytes = [0; FILTER_BYTES_64];
            image.read(image.argument, &mut bytes)?;
            RawFilter::from_bytes_64(&bytes)
        }
        Request::Compat => {
            let mut bytes = [0; FILTER_BYTES_32];
            image.read(image.argument, &mut bytes)?;
            RawFilter::from_bytes_32(&bytes)
        }
    };
    let copy = |pointer: u64, words: &mut [u64]| {
        let mut bytes = vec![0; words.len() * 8];
        image.read(pointer, &mut bytes)?;
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
        }
        Ok(())
    };
    raw.check(copy).map_err(|error| error.errno())
}

fn expect_errno(found: Option<Errno>, expected: Option<Errno>) -> Result<(), Trouble> {
    if found == expected {
        return Ok(());
    }
    let text = format!("answered {found:?}, not {expected:?}");
    Err(Trouble::Mismatch(text))
}

fn source_name(source: DecisionSource) -> String {
    match source {
        DecisionSource::Exempt => "exempt".to_owned(),
        DecisionSource::Range(position) => format!("range {position}"),
        DecisionSource::Default => "default".to_owned(),
        DecisionSource::NoFilter => "no filter".to_owned(),
    }
}

fn mismatch(error: &dyn std::error::Error) -> Trouble {
    Trouble::Mismatch(error.to_string())
}
