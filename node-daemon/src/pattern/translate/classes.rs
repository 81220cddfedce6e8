//! The classes of characters: `[…]`, `\d` and its kind, `\p{…}`.

use super::{NEST_LIMIT, Translation, push_literal};

/// What may stand in `[[:…:]]`; the plain engine would take another word for its letters.
const NAMED: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

impl Translation<'_> {
    /// After `[`, to its `]`.
    pub(super) fn class(&mut self, at: usize) -> Result<(), String> {
        let unclosed =
            |this: &Self, at| Err(format!("`[` at character {} has no `]`", this.place(at)));
        let mut opened = vec![at];
        self.out.push('[');
        if self.eat("^") {
            self.out.push('^');
        }
        let mut first = true;
        // Whether what stands before may begin a range.
        let mut single = false;
        loop {
            let here = self.at;
            let Some(character) = self.take() else {
                return unclosed(self, *opened.last().unwrap_or(&at));
            };
            match character {
                // First in a class it is itself, in both dialects.
                ']' if first => {
                    self.out.push_str("\\]");
                    single = true;
                }
                ']' => {
                    self.out.push(']');
                    opened.pop();
                    if opened.is_empty() {
                        return Ok(());
                    }
                    single = false;
                }
                '[' if self.is_named_class() => {
                    let name = self.until(']').unwrap_or_default();
                    if !NAMED.contains(&name.trim_matches([':', '^'])) {
                        let place = self.place(here);
                        return Err(format!(
                            "no class is called `[{name}]` at character {place}"
                        ));
                    }
                    self.out.push('[');
                    self.out.push_str(name);
                    self.out.push(']');
                    single = false;
                }
                '[' if self.ruby => {
                    if opened.len() as u64 >= u64::from(NEST_LIMIT) {
                        return Err(format!("`[…]` nest deeper than {NEST_LIMIT}"));
                    }
                    opened.push(here);
                    self.out.push('[');
                    if self.eat("^") {
                        self.out.push('^');
                    }
                    first = true;
                    single = false;
                    continue;
                }
                '&' if self.ruby && self.eat("&") => {
                    self.out.push_str("&&");
                    single = false;
                }
                '-' => {
                    let ranges = single && !self.rest().starts_with(']') && !self.rest().is_empty();
                    if ranges && !self.range_end_is_class() {
                        self.out.push('-');
                        let end = self.at;
                        match self.take() {
                            Some('\\') => {
                                let escaped = self.take().unwrap_or('\\');
                                let value = self.class_character(escaped, end)?;
                                push_literal(&mut self.out, value);
                            }
                            Some(value) => push_literal(&mut self.out, value),
                            None => return unclosed(self, at),
                        }
                    } else {
                        self.out.push_str("\\-");
                    }
                    single = false;
                }
                '\\' => {
                    let Some(escaped) = self.take() else {
                        return unclosed(self, at);
                    };
                    single = false;
                    match escaped {
                        'd' | 'D' | 'w' | 'W' | 's' | 'S' => self.short_class(escaped),
                        'h' | 'H' if self.ruby => self.short_class(escaped),
                        'p' | 'P' => {
                            let property = self.property(escaped, here)?;
                            self.out.push_str(&property);
                        }
                        'R' if self.ruby => {
                            let place = self.place(here);
                            return Err(format!(
                                "`\\{escaped}` at character {place} cannot stand in `[…]`"
                            ));
                        }
                        other => {
                            let value = self.class_character(other, here)?;
                            push_literal(&mut self.out, value);
                            single = true;
                        }
                    }
                }
                other => {
                    push_literal(&mut self.out, other);
                    single = true;
                }
            }
            first = false;
        }
    }

    /// Whether `[` is followed by `:name:]`.
    fn is_named_class(&self) -> bool {
        let Some(rest) = self.rest().strip_prefix(':') else {
            return false;
        };
        let rest = rest.strip_prefix('^').unwrap_or(rest);
        let name = rest.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        name.len() < rest.len() && name.starts_with(":]")
    }

    fn class_character(&mut self, escaped: char, at: usize) -> Result<char, String> {
        match escaped {
            'b' if self.ruby => Ok('\x08'),
            '1'..='7' if self.ruby => {
                self.at -= 1;
                let octal = self.digits(3, 8);
                Ok(u32::from_str_radix(octal, 8)
                    .ok()
                    .and_then(char::from_u32)
                    .unwrap_or(escaped))
            }
            other => self.character(other, at),
        }
    }

    fn range_end_is_class(&self) -> bool {
        let mut rest = self.rest().chars();
        match (rest.next(), rest.next()) {
            (Some('\\'), Some(next)) => "dDwWsShHpP".contains(next),
            (Some('['), next) => self.ruby || next == Some(':'),
            (Some('&'), Some('&')) => self.ruby,
            _ => false,
        }
    }

    pub(super) fn short_class(&mut self, name: char) {
        let unicode = self.flags.unicode;
        let text = match (name, unicode) {
            ('d' | 'D' | 'w' | 'W' | 's' | 'S', true) => {
                return self.out.push_str(&format!("\\{name}"));
            }
            ('d', _) => "[0-9]",
            ('D', _) => "[^0-9]",
            ('w', _) => "[0-9A-Za-z_]",
            ('W', _) => "[^0-9A-Za-z_]",
            ('s', _) if self.ruby => r"[\t\n\x0b\f\r ]",
            ('S', _) if self.ruby => r"[^\t\n\x0b\f\r ]",
            ('s', _) => r"[\t\n\f\r ]",
            ('S', _) => r"[^\t\n\f\r ]",
            ('h', _) => "[0-9A-Fa-f]",
            _ => "[^0-9A-Fa-f]",
        };
        self.out.push_str(text);
    }

    /// After `\p` or `\P`.
    pub(super) fn property(&mut self, letter: char, at: usize) -> Result<String, String> {
        if !self.eat("{") {
            return match self.take() {
                Some(name) if name.is_ascii_alphabetic() => Ok(format!("\\{letter}{name}")),
                _ => Err(format!(
                    "`\\{letter}` at character {} needs a name",
                    self.place(at)
                )),
            };
        }
        let Some(name) = self.until('}') else {
            return Err(format!(
                "`\\{letter}{{` at character {} has no `}}`",
                self.place(at)
            ));
        };
        let (name, negated) = match name.strip_prefix('^') {
            Some(name) => (name, letter == 'p'),
            None => (name, letter == 'P'),
        };
        let not = if negated { "^" } else { "" };
        Ok(match name.to_ascii_lowercase().as_str() {
            "word" if self.ruby => format!(r"[{not}\w]"),
            "alnum" if self.ruby => format!(r"[{not}\p{{Alphabetic}}\p{{Nd}}]"),
            "blank" if self.ruby => format!(r"[{not}\t\p{{Zs}}]"),
            "graph" if self.ruby => format!(r"[{not}[^\p{{White_Space}}\p{{Cc}}\p{{Cs}}\p{{Cn}}]]"),
            "print" if self.ruby => format!(r"[{not}[^\p{{Cc}}\p{{Cs}}\p{{Cn}}]]"),
            _ => format!("\\{}{{{name}}}", if negated { 'P' } else { 'p' }),
        })
    }
}
