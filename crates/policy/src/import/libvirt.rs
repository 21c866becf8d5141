//! libvirt's domain XML: `<features><msrs unknown='ignore|fault'/></features>`.

use roxmltree::{Document, Node};

use super::ImportError;
use super::draft::Draft;

const ABOUT: &str =
    "Imported from a domain of libvirt. `unknown` is what it says of MSRs that nobody knows.";

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let mut draft = Draft::new(ABOUT, "<msrs unknown='…'/> element");
    let document = parse(text)?;
    let mut given = None;
    for node in document
        .descendants()
        .filter(|node| node.has_tag_name("msrs"))
    {
        let place = place(&document, node);
        if given.replace(node).is_some() {
            let why = "a second <msrs>: a domain has one";
            return Err(ImportError::malformed(place, why));
        }
        let word = match node.attribute("unknown") {
            Some("ignore") => "ignore",
            Some("fault") => "fault",
            Some(other) => {
                let why = format!("unknown={other:?}: libvirt has ignore and fault");
                return Err(ImportError::malformed(place, why));
            }
            None => {
                return Err(ImportError::malformed(
                    place,
                    "<msrs> says nothing: no unknown=",
                ));
            }
        };
        draft.default("unknown", word);
        for attribute in node.attributes().filter(|it| it.name() != "unknown") {
            let what = format!("{}='{}'", attribute.name(), attribute.value());
            draft.note(&place, &what, "this version does not know what it means");
        }
    }
    Ok(draft)
}

/// The parser compares each attribute of an element with all others.
const MAX_ATTRIBUTES: usize = 1000;

/// Parses XML; a document type, and with it every entity of one's own, is refused.
pub(super) fn parse(text: &str) -> Result<Document<'_>, ImportError> {
    let mut line = 1;
    for tag in text.split('<') {
        if tag.matches('=').count() > MAX_ATTRIBUTES {
            let why = format!("more than {MAX_ATTRIBUTES} attributes in one element");
            return Err(ImportError::malformed(format!("line {line}"), why));
        }
        line += tag.matches('\n').count();
    }
    Document::parse(text).map_err(|error| {
        let why = error.to_string();
        ImportError::malformed(
            format!("line {}", error.pos().row),
            format!("not XML: {why}"),
        )
    })
}

pub(super) fn place(document: &Document<'_>, node: Node<'_, '_>) -> String {
    format!("line {}", document.text_pos_at(node.range().start).row)
}
