//! Changes to an XML text that leave everything else as it is, to the byte.

use std::ops::Range;

use roxmltree::Node;

/// Changes to one text, each at a place of its own.
pub(super) struct Edits<'a> {
    text: &'a str,
    changes: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    /// None so far. All nodes given later must have been read from `text`.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, changes: Vec::new() }
    }

    /// Puts other XML in the place of an element.
    pub(super) fn replace(&mut self, element: Node, xml: impl Into<String>) {
        self.changes.push((element.range(), xml.into()));
    }

    /// Removes an element, and the blanks before it.
    pub(super) fn remove(&mut self, element: Node) {
        let range = element.range();
        let start = self.text[..range.start].trim_end_matches(is_blank).len();
        self.changes.push((start..range.end, String::new()));
    }

    /// Puts XML before an element, as its neighbour.
    pub(super) fn insert_before(&mut self, element: Node, xml: &str) {
        let at = element.range().start;
        let blanks = self.text[..at].trim_end_matches(is_blank).len();
        self.changes.push((at..at, format!("{xml}{}", &self.text[blanks..at])));
    }

    /// Makes `xml` all that an element contains.
    pub(super) fn set_content(&mut self, element: Node, xml: &str) {
        let range = element.range();
        let after_name = self.end_of_attributes(element);
        let tag_end = after_name + self.text[after_name..range.end].find('>').unwrap_or(0);
        if self.text[..tag_end].ends_with('/') {
            let name = qualified_name(&self.text[range.start..]);
            self.changes.push((tag_end - 1..range.end, format!(">{xml}</{name}>")));
        } else {
            let close = self.text[..range.end].rfind("</").unwrap_or(range.end);
            self.changes.push((tag_end + 1..close, xml.to_owned()));
        }
    }

    /// Gives an attribute of an element a value, whether it has the attribute or not.
    pub(super) fn set_attribute(&mut self, element: Node, name: &str, value: &str) {
        let value = escaped(value);
        match element.attribute_node(name) {
            Some(attribute) => {
                // Names hold no quotes: the first one is where the value begins.
                let range = attribute.range();
                let quote = self.text[range.clone()].find(['\'', '"']).unwrap_or(0);
                self.changes.push((range.start + quote + 1..range.end - 1, value));
            }
            None => {
                let at = self.end_of_attributes(element);
                self.changes.push((at..at, format!(" {name}='{value}'")));
            }
        }
    }

    /// Removes an attribute of an element, if it has it.
    pub(super) fn remove_attribute(&mut self, element: Node, name: &str) {
        if let Some(attribute) = element.attribute_node(name) {
            let range = attribute.range();
            let start = self.text[..range.start].trim_end_matches(is_blank).len();
            self.changes.push((start..range.end, String::new()));
        }
    }

    /// The text with all changes.
    ///
    /// # Errors
    /// Where two changes meet, in bytes of the old text.
    pub(super) fn apply(mut self) -> Result<String, usize> {
        self.changes.sort_by_key(|(range, _)| (range.start, range.end));
        let (mut changed, mut at) = (String::with_capacity(self.text.len()), 0);
        for (range, replacement) in self.changes {
            changed.push_str(self.text.get(at..range.start).ok_or(range.start)?);
            changed.push_str(&replacement);
            at = range.end;
        }
        changed.push_str(&self.text[at..]);
        Ok(changed)
    }

    /// Right after an element's last attribute, or its name if it has none.
    fn end_of_attributes(&self, element: Node) -> usize {
        let start = element.range().start;
        let name = start + 1 + qualified_name(&self.text[start..]).len();
        element.attributes().map(|attribute| attribute.range().end).fold(name, usize::max)
    }
}

/// The name of the element that `xml` begins with, with its prefix.
fn qualified_name(xml: &str) -> &str {
    let name = xml.strip_prefix('<').unwrap_or(xml);
    &name[..name.find(|c| is_blank(c) || c == '/' || c == '>').unwrap_or(name.len())]
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// A text as it stands in XML, as content or between quotes of either kind.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether a text comes back from libvirt as it was: XML knows no control characters, and libvirt lets line ends become blanks.
pub(super) fn is_expressible(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    fn edited(xml: &str, edit: impl FnOnce(&mut Edits, Node)) -> String {
        let document = Document::parse(xml).unwrap();
        let mut edits = Edits::new(xml);
        let b = document.descendants().find(|node| node.has_tag_name("b")).unwrap();
        edit(&mut edits, b);
        edits.apply().unwrap()
    }

    #[test]
    fn content_is_replaced_whatever_the_element_looks_like() {
        for (before, after) in [
            ("<a><b/></a>", "<a><b>x</b></a>"),
            ("<a><b /></a>", "<a><b >x</b></a>"),
            ("<a><b></b></a>", "<a><b>x</b></a>"),
            ("<a><b c='>'/></a>", "<a><b c='>'>x</b></a>"),
            ("<a><b c=\"/>\" >y<!-- </b> -->z</b ></a>", "<a><b c=\"/>\" >x</b ></a>"),
            ("<a><b><![CDATA[</b>]]>y</b></a>", "<a><b>x</b></a>"),
            ("<a xmlns:n='n'><n:b/></a>", "<a xmlns:n='n'><n:b>x</n:b></a>"),
        ] {
            assert_eq!(edited(before, |edits, b| edits.set_content(b, "x")), after);
        }
    }

    #[test]
    fn attributes_are_set_and_removed() {
        let set = |xml: &str| edited(xml, |edits, b| edits.set_attribute(b, "c", "<'\">"));
        let value = "&lt;&apos;&quot;&gt;";
        assert_eq!(set("<a><b/></a>"), format!("<a><b c='{value}'/></a>"));
        assert_eq!(set("<a><b d='1' ></b></a>"), format!("<a><b d='1' c='{value}' ></b></a>"));
        assert_eq!(set("<a><b c = \"it's\"/></a>"), format!("<a><b c = \"{value}\"/></a>"));
        let spaced = format!("<a><b c{:300}='x'/></a>", "");
        assert_eq!(set(&spaced), spaced.replace("'x'", &format!("'{value}'")));
        let removed = |xml: &str| edited(xml, |edits, b| edits.remove_attribute(b, "c"));
        assert_eq!(removed("<a><b d='1'\n  c='2' e='3'/></a>"), "<a><b d='1' e='3'/></a>");
        assert_eq!(removed("<a><b/></a>"), "<a><b/></a>");
    }

    #[test]
    fn elements_come_and_go_with_their_line() {
        let xml = "<a>\n  <x/>\n  <b>\n  </b>\n  <y/>\n</a>";
        assert_eq!(edited(xml, |edits, b| edits.remove(b)), "<a>\n  <x/>\n  <y/>\n</a>");
        let inserted = edited(xml, |edits, b| edits.insert_before(b, "<z/>"));
        assert_eq!(inserted, "<a>\n  <x/>\n  <z/>\n  <b>\n  </b>\n  <y/>\n</a>");
    }

    #[test]
    fn changes_that_meet_are_refused() {
        let xml = "<a><b><c/></b></a>";
        let document = Document::parse(xml).unwrap();
        let mut edits = Edits::new(xml);
        document.root_element().descendants().skip(1).for_each(|node| edits.remove(node));
        assert_eq!(edits.apply(), Err(6));
    }

    #[test]
    fn what_xml_can_hold() {
        for text in ["\0", "\u{1b}", "\u{fffe}", "\u{ffff}"] {
            assert!(!is_expressible(text), "{text:?}");
            assert!(Document::parse(&format!("<a>{text}</a>")).is_err(), "{text:?}");
        }
        assert!(!is_expressible("a\nb"));
        let text = "käse's \u{1f4be} \"<&>";
        assert!(is_expressible(text));
        let xml = format!("<a b='{0}'>{0}</a>", escaped(text));
        let document = Document::parse(&xml).unwrap();
        assert_eq!(document.root_element().attribute("b"), Some(text));
        assert_eq!(document.root_element().text(), Some(text));
    }
}
