//! Patterns of names: `*` stands for any text, `?` for one character.

/// Whether the whole of `name` fits. Takes time in proportion to both lengths multiplied, whatever they hold.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut p) = (0, 0);
    // Where the last star stood, and up to where it has eaten.
    let mut star: Option<(usize, usize)> = None;
    while at < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, at));
                p += 1;
            }
            Some('?') => (at, p) = (at + 1, p + 1),
            Some(c) if *c == name[at] => (at, p) = (at + 1, p + 1),
            _ => match star {
                Some((stood, eaten)) => {
                    star = Some((stood, eaten + 1));
                    (at, p) = (eaten + 1, stood + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "web"),
            ("web", "web"),
            ("web*", "web-1"),
            ("*-1", "web-1"),
            ("w?b", "web"),
            ("w*b*1", "web-1-1"),
            ("kä?e", "käse"),
            ("**", "x"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "a"), ("web", "web1"), ("web", "we"), ("web?", "web"), ("*-1", "web-12"), ("WEB", "web")]
        {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        assert!(!fits(&"*a".repeat(60), &"a".repeat(59)));
        assert!(!fits(&format!("{}b", "a*".repeat(60)), &"a".repeat(2000)), "no exponential time");
    }
}
