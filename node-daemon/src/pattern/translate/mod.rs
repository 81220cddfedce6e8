//! Say a pattern of Ruby or of Go in the words of the engines here.
//! Place: `Pattern` calls it once, before it compiles.
//! Invariants: one pass; what it does not know it leaves to the engine, whose error is
//! then the user's; `hard` is set wherever the plain engine would accept the words and mean something else.
//!
//! | written | Ruby | Go |
//! |---|---|---|
//! | `/…/imx` | taken off; the flags count | literal |
//! | `^` `$` | at each line | at the text's ends |
//! | `.` and newline | with flag `m` | with flag `s` |
//! | `\d \w \s` | ASCII (`(?u)`: Unicode) | ASCII |
//! | `\h`, `\R`, `\Z`, `\e`, `{,n}`, `(?#…)`, `\cX` | yes | no |
//! | `(…)` beside `(?<name>…)` | groups only | captures |
//! | `x++`, `(?>…)`, look-around, `\1`, `\k<n>`, `\g<n>` | hard | hard (beyond Go) |
//! | `{` that counts nothing | literal | literal |
//! | `[` `&&` in `[…]` | nested, intersection | literal |
//! | `(?i)` | to the end of the group, `\|` included | to the end of the group |

mod classes;

use super::{Dialect, NEST_LIMIT};

/// A pattern in the engines' words.
#[derive(Debug)]
pub(super) struct Translated {
    /// What to compile for a text of one line.
    pub(super) pattern: String,
    /// What to compile for a text of several lines, if that is another.
    pub(super) of_lines: Option<String>,
    /// Only `fancy-regex` can.
    pub(super) hard: bool,
}

/// Go's `\b`, which knows ASCII only: `\bERROR` matches in `错误ERROR`. The hard engine has no word for it.
pub(super) const GO_WORD_EDGE: &str = r"(?-u:\b)";
/// Go's `\B`.
pub(super) const GO_NO_WORD_EDGE: &str = r"(?-u:\B)";

/// Translates; an error is one line, with the place counted in characters from 1.
pub(super) fn translate(dialect: Dialect, written: &str) -> Result<Translated, String> {
    let ruby = dialect == Dialect::Ruby;
    let (body, slash_flags) = if ruby {
        unwrapped(written)
    } else {
        (written, "")
    };
    let mut flags = Flags::default();
    for flag in slash_flags.chars() {
        match flag {
            'i' => flags.ignore_case = true,
            'm' => flags.dot_all = true,
            'x' => flags.extended = true,
            // How often Ruby expands `#{…}`, and the encoding of the literal: nothing to match.
            _ => {}
        }
    }
    let mut translation = Translation {
        ruby,
        source: body,
        at: 0,
        out: String::with_capacity(body.len() + 16),
        hard: false,
        flags,
        open: Vec::new(),
        named: ruby && has_names(body),
        names: Vec::new(),
        line_ends: false,
    };
    translation.run()?;
    let mut leading = String::new();
    if flags.ignore_case {
        leading.push('i');
    }
    if flags.dot_all {
        leading.push('s');
    }
    let under = |flags: &str| match flags {
        "" => translation.out.clone(),
        flags => format!("(?{flags}:{})", translation.out),
    };
    Ok(Translated {
        pattern: under(&leading),
        of_lines: (ruby && translation.line_ends).then(|| under(&format!("{leading}m"))),
        hard: translation.hard,
    })
}

/// What stands inside `/…/`, and the flags after it.
fn unwrapped(written: &str) -> (&str, &str) {
    let trimmed = written.trim();
    let inside = trimmed
        .strip_prefix('/')
        .and_then(|rest| rest.rsplit_once('/'))
        .filter(|(_, flags)| flags.chars().all(|flag| "imxounes".contains(flag)));
    inside.unwrap_or((written, ""))
}

/// Whether a group has a name; then Ruby does not capture those without.
fn has_names(body: &str) -> bool {
    let mut escaped = false;
    body.char_indices().any(|(at, character)| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        escaped = character == '\\';
        let rest = &body[at..];
        rest.starts_with("(?'")
            || rest.starts_with("(?P<")
            || (rest.starts_with("(?<") && !rest[3..].starts_with(['=', '!']))
    })
}

#[derive(Clone, Copy, Default)]
struct Flags {
    ignore_case: bool,
    dot_all: bool,
    extended: bool,
    unicode: bool,
}

struct Open {
    /// Where it was opened.
    at: usize,
    /// The flags to return to.
    flags: Flags,
    /// How many groups stand for flags that hold to its end.
    isolated: usize,
}

struct Translation<'a> {
    ruby: bool,
    source: &'a str,
    at: usize,
    out: String,
    hard: bool,
    flags: Flags,
    open: Vec<Open>,
    named: bool,
    names: Vec<&'a str>,
    /// Whether `^` or `$` stands in it.
    line_ends: bool,
}

impl<'a> Translation<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += character.len_utf8();
        Some(character)
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    /// Takes up to the character and it, and gives what stands before it.
    fn until(&mut self, end: char) -> Option<&'a str> {
        let rest = self.rest();
        let length = rest.find(end)?;
        self.at += length + end.len_utf8();
        Some(&rest[..length])
    }

    fn place(&self, at: usize) -> usize {
        self.source[..at].chars().count() + 1
    }

    fn run(&mut self) -> Result<(), String> {
        let mut isolated = 0;
        while let Some(character) = self.peek() {
            let at = self.at;
            self.at += character.len_utf8();
            match character {
                '\\' => self.escape(at)?,
                '[' => self.class(at)?,
                '(' => self.group(at, &mut isolated)?,
                ')' => {
                    let Some(open) = self.open.pop() else {
                        return Err(format!("`)` without `(` at character {}", self.place(at)));
                    };
                    self.close(open.isolated);
                    self.out.push(')');
                    self.flags = open.flags;
                }
                '*' | '+' | '?' => self.repeat(character),
                '{' => self.braces(),
                '}' | ']' => self.literal(character),
                '|' => {
                    self.out.push('|');
                }
                '^' | '$' => {
                    self.line_ends = true;
                    self.out.push(character);
                }
                '#' if self.flags.extended => {
                    while self.take().is_some_and(|character| character != '\n') {}
                }
                space if self.flags.extended && space.is_ascii_whitespace() => {}
                other => {
                    self.out.push(other);
                }
            }
        }
        self.close(isolated);
        match self.open.last() {
            Some(open) => Err(format!(
                "`(` at character {} has no `)`",
                self.place(open.at)
            )),
            None => Ok(()),
        }
    }

    fn close(&mut self, groups: usize) {
        for _ in 0..groups {
            self.out.push(')');
        }
    }

    fn literal(&mut self, character: char) {
        push_literal(&mut self.out, character);
    }

    /// `*`, `+` or `?`, with the `?` or `+` that says how.
    fn repeat(&mut self, character: char) {
        self.out.push(character);
        if self.eat("+") {
            self.out.push('+');
            self.hard = true;
        } else if self.eat("?") {
            self.out.push('?');
        }
    }

    /// `{n}`, `{n,}`, `{n,m}`, `{,m}`, or a brace.
    fn braces(&mut self) {
        // Twenty digits are more than any count that would compile.
        let length = self.rest().bytes().take(24).position(|byte| byte == b'}');
        let counts = length.map(|length| &self.rest()[..length]);
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let Some(inside) = counts else {
            return self.literal('{');
        };
        let (least, most) = match inside.split_once(',') {
            None if digits(inside) => (inside, None),
            Some((least, most))
                if (digits(least) && (most.is_empty() || digits(most)))
                    || (least.is_empty() && digits(most) && self.ruby) =>
            {
                (least, Some(most))
            }
            _ => return self.literal('{'),
        };
        self.at += inside.len() + 1;
        self.out.push('{');
        self.out
            .push_str(if least.is_empty() { "0" } else { least });
        if let Some(most) = most {
            self.out.push(',');
            self.out.push_str(most);
        }
        self.out.push('}');
        if self.eat("?") {
            self.out.push('?');
            // Ruby reads `x{3}?` as an optional `x{3}`, which only the other engine can say.
            self.hard |= self.ruby && most.is_none();
        }
    }

    /// After `(`.
    fn group(&mut self, at: usize, isolated: &mut usize) -> Result<(), String> {
        if self.open.len() as u64 >= u64::from(NEST_LIMIT) {
            return Err(format!("groups nest deeper than {NEST_LIMIT}"));
        }
        let opened = Open {
            at,
            flags: self.flags,
            isolated: 0,
        };
        if !self.eat("?") {
            self.out.push_str(if self.named { "(?:" } else { "(" });
            self.open.push(opened);
            return Ok(());
        }
        for (text, hard) in [
            (":", false),
            ("=", true),
            ("!", true),
            ("<=", true),
            ("<!", true),
            (">", true),
            ("~", true),
        ] {
            if self.eat(text) {
                self.out.push_str("(?");
                self.out.push_str(text);
                self.hard |= hard;
                self.open.push(opened);
                return Ok(());
            }
        }
        if self.eat("#") {
            return match self.until(')') {
                Some(_) => Ok(()),
                None => Err(format!("`(` at character {} has no `)`", self.place(at))),
            };
        }
        let named = if self.eat("P<") || self.eat("<") {
            Some('>')
        } else if self.ruby && self.eat("'") {
            Some('\'')
        } else {
            None
        };
        if let Some(end) = named {
            let name = self.until(end).unwrap_or_default();
            if name.is_empty()
                || !name
                    .chars()
                    .all(|c| c.is_alphanumeric() || "_-.".contains(c))
            {
                let place = self.place(at);
                return Err(format!(
                    "the group at character {place} needs a name in `(?<name>…)`"
                ));
            }
            // The plain engine refuses one name twice and signs in names.
            let plain_name = name.chars().all(|c| c.is_alphanumeric() || c == '_')
                && !name.starts_with(|c: char| c.is_numeric());
            self.hard |= self.names.contains(&name) || !plain_name;
            self.names.push(name);
            self.out.push_str("(?<");
            self.out.push_str(name);
            self.out.push('>');
            self.open.push(opened);
            return Ok(());
        }
        if self.rest().starts_with(['(', 'P']) {
            // A condition, or Python's words for a back-reference or a call: as they are.
            self.hard = true;
            self.out.push_str("(?");
            if self.eat("(") {
                let condition = self.until(')').unwrap_or_default();
                self.out.push('(');
                self.out.push_str(condition);
                self.out.push(')');
            }
            self.open.push(opened);
            return Ok(());
        }
        self.group_flags(opened, isolated)
    }

    /// After `(?`, where flags have to follow.
    fn group_flags(&mut self, opened: Open, isolated: &mut usize) -> Result<(), String> {
        let (mut on, mut off) = (String::new(), String::new());
        let mut minus = false;
        loop {
            let flag = self.take();
            let told = if minus { &mut off } else { &mut on };
            match flag {
                Some('i') => {
                    self.flags.ignore_case = !minus;
                    told.push('i');
                }
                Some('m') if self.ruby => {
                    self.flags.dot_all = !minus;
                    told.push('s');
                }
                Some(flag @ ('m' | 's' | 'U')) if !self.ruby => told.push(flag),
                Some('x') if self.ruby => self.flags.extended = !minus,
                Some('u') if self.ruby => self.flags.unicode = !minus,
                Some('a' | 'd') if self.ruby => self.flags.unicode = false,
                Some('-') if !minus => minus = true,
                Some(end @ (':' | ')')) => {
                    self.out.push_str("(?");
                    self.out.push_str(&on);
                    if !off.is_empty() {
                        self.out.push('-');
                        self.out.push_str(&off);
                    }
                    self.out.push(if self.ruby { ':' } else { end });
                    if end == ':' {
                        self.open.push(opened);
                    } else if self.ruby {
                        // `a(?i)b|c` is `a(?i:b|c)` there.
                        match self.open.last_mut() {
                            Some(around) => around.isolated += 1,
                            None => *isolated += 1,
                        }
                    }
                    return Ok(());
                }
                Some(other) => return Err(format!("no flag is called `{other}` in `(?…)`")),
                None => {
                    return Err(format!(
                        "`(` at character {} has no `)`",
                        self.place(opened.at)
                    ));
                }
            }
        }
    }

    /// After `\`, outside of `[…]`.
    fn escape(&mut self, at: usize) -> Result<(), String> {
        let Some(character) = self.take() else {
            return Err("it ends with a single `\\`".to_owned());
        };
        match character {
            'd' | 'D' | 'w' | 'W' | 's' | 'S' => self.short_class(character),
            'h' | 'H' if self.ruby => self.short_class(character),
            'b' if !self.ruby => self.out.push_str(GO_WORD_EDGE),
            'B' if !self.ruby => self.out.push_str(GO_NO_WORD_EDGE),
            'A' | 'z' | 'b' | 'B' => {
                self.out.push('\\');
                self.out.push(character);
            }
            'Z' if self.ruby && self.rest().is_empty() && self.open.is_empty() => {
                self.out.push_str("\\n?\\z");
            }
            'Z' | 'G' | 'K' if self.ruby => {
                self.hard = true;
                self.out.push('\\');
                self.out.push(character);
            }
            'R' if self.ruby => self
                .out
                .push_str(r"(?:\r\n|[\n\x0b\f\r\x{85}\x{2028}\x{2029}])"),
            '1'..='9' => {
                self.hard = true;
                self.out.push('\\');
                self.out.push(character);
                while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
                    self.at += 1;
                    self.out.push(digit);
                }
            }
            'k' | 'g' if self.ruby && self.rest().starts_with(['<', '\'']) => {
                let end = if self.eat("<") {
                    '>'
                } else {
                    self.eat("'");
                    '\''
                };
                let Some(name) = self.until(end) else {
                    return Err(format!(
                        "`\\{character}<` at character {} has no `>`",
                        self.place(at)
                    ));
                };
                self.hard = true;
                self.out.push_str(&format!("\\{character}<{name}>"));
            }
            'Q' if !self.ruby => {
                let rest = self.rest();
                let quoted = rest.split_once("\\E").map_or(rest, |(quoted, _)| quoted);
                for character in quoted.chars() {
                    self.literal(character);
                }
                self.at = (self.at + quoted.len() + 2).min(self.source.len());
            }
            'p' | 'P' => {
                let property = self.property(character, at)?;
                self.out.push_str(&property);
            }
            other => {
                let value = self.character(other, at)?;
                self.literal(value);
            }
        }
        Ok(())
    }

    /// The character that an escape in or outside of `[…]` stands for.
    fn character(&mut self, escaped: char, at: usize) -> Result<char, String> {
        let bad = |this: &Self| {
            let place = this.place(at);
            Err(format!(
                "`\\{escaped}` at character {place} is no character"
            ))
        };
        let value = match escaped {
            't' => '\t',
            'n' => '\n',
            'r' => '\r',
            'f' => '\x0c',
            'v' => '\x0b',
            'a' => '\x07',
            'e' if self.ruby => '\x1b',
            'c' | 'C' if self.ruby && (escaped == 'c' || self.eat("-")) => match self.take() {
                Some('?') => '\x7f',
                Some(control) if control.is_ascii() => char::from(control as u8 & 0x1f),
                _ => return bad(self),
            },
            '0' => {
                let octal = self.digits(2, 8);
                match octal {
                    "" => '\0',
                    digits => match u32::from_str_radix(digits, 8).ok().and_then(char::from_u32) {
                        Some(value) => value,
                        None => return bad(self),
                    },
                }
            }
            'x' | 'u' if escaped == 'x' || self.ruby => {
                let braced = self.eat("{");
                let digits = if braced {
                    self.until('}').unwrap_or_default().trim()
                } else {
                    self.digits(if escaped == 'x' { 2 } else { 4 }, 16)
                };
                if escaped == 'u' && !braced && digits.len() < 4 {
                    return bad(self);
                }
                match u32::from_str_radix(digits, 16)
                    .ok()
                    .and_then(char::from_u32)
                {
                    Some(value) => value,
                    None => return bad(self),
                }
            }
            // Ruby takes a letter for itself where it makes no escape; these two do, and no engine here knows them.
            letter
                if letter.is_ascii_alphanumeric()
                    && (!self.ruby || matches!(letter, 'M' | 'X')) =>
            {
                let place = self.place(at);
                return Err(format!(
                    "`\\{letter}` at character {place} is not supported"
                ));
            }
            other => other,
        };
        Ok(value)
    }

    fn digits(&mut self, most: usize, radix: u32) -> &'a str {
        let rest = self.rest();
        let length = rest
            .chars()
            .take(most)
            .take_while(|c| c.is_digit(radix))
            .count();
        self.at += length;
        &rest[..length]
    }
}

/// Writes a character so that both engines read just it, in and outside of `[…]`.
fn push_literal(out: &mut String, character: char) {
    match character {
        '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$'
        | '-' => {
            out.push('\\');
            out.push(character);
        }
        // Written as their numbers: as signs they mean something in some mode or some class.
        '#' | '&' | '~' | ' ' | '/' | '<' | '>' => {
            out.push_str(&format!("\\x{:02x}", u32::from(character)));
        }
        control if control.is_control() => {
            out.push_str(&format!("\\x{{{:x}}}", u32::from(control)))
        }
        other => out.push(other),
    }
}
