//! Links within the project: each leads to a file, and to a heading of it.

use std::fs;
use std::path::Path;

use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use regex::Regex;

/// The links of a document that lead nowhere.
pub(crate) fn mistakes(path: &Path, text: &str) -> Vec<String> {
    let mut mistakes = Vec::new();
    for event in Parser::new(text) {
        let links = match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                vec![dest_url.into_string()]
            }
            Event::Html(html) | Event::InlineHtml(html) => sources(&html),
            _ => continue,
        };
        for link in links {
            if !link.contains("://") && !leads_somewhere(path, text, &link) {
                mistakes.push(format!("{link}: leads nowhere"));
            }
        }
    }
    mistakes
}

/// What HTML shows: `<img src="…">`.
fn sources(html: &str) -> Vec<String> {
    let attribute = Regex::new(r#"\b(?:src|srcset)="([^"]*)""#).expect("it is one");
    let found = attribute.captures_iter(html);
    found.map(|found| found[1].to_owned()).collect()
}

fn leads_somewhere(path: &Path, text: &str, link: &str) -> bool {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    if file.is_empty() {
        return anchors(text).contains(&anchor.to_owned());
    }
    let target = path.parent().expect("a folder").join(file);
    if anchor.is_empty() {
        return target.exists();
    }
    fs::read_to_string(target).is_ok_and(|text| anchors(&text).contains(&anchor.to_owned()))
}

/// What GitHub calls the headings.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors = Vec::new();
    let mut heading: Option<String> = None;
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    *heading += &text;
                }
            }
            Event::End(TagEnd::Heading(_)) => anchors.extend(heading.take().map(|it| anchor(&it))),
            _ => {}
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
