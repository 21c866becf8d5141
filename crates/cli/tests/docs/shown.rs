//! What a document shows of a command's output, against what was printed: [`first_difference`].

use regex::Regex;

/// The first line that is shown and was not printed, or `end` where more was printed than is shown.
///
/// `…` stands for any text, and for any lines where it is a line of its own.
pub(crate) fn first_difference<'s>(shown: &'s str, printed: &str) -> Option<&'s str> {
    let printed = format!("{}\n", printed.trim_end());
    let mut pattern = String::from(r"\A");
    for line in shown.trim_end().lines() {
        pattern += &match line {
            "…" => "(?s:.*\n)?".to_owned(),
            line => regex::escape(line.trim_end()).replace('…', ".*") + " *\n",
        };
        if !is_in(&pattern, &printed) {
            return Some(line);
        }
    }
    pattern += r"\z";
    (!is_in(&pattern, &printed)).then_some("end")
}

fn is_in(pattern: &str, text: &str) -> bool {
    let pattern = Regex::new(pattern).expect("a text that is escaped");
    pattern.is_match(text)
}
