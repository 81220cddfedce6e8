//! Read records by a pattern: its named groups become fields.
//! Place: one of `parse`'s formats; the pattern itself is `crate::pattern`'s.
//! Invariants: a field is a range of the text; a group that took no part in the match is no field; the group that
//! says the time is a field only where it cannot be read, as with fluentd.

use super::{Record, TIME, TimeField, text_value};
use crate::declare::TimeKey;
use crate::pattern::Pattern;

/// Reads records by a pattern.
#[derive(Debug)]
pub(super) struct Groups {
    pattern: Pattern,
    /// Which group (by its number in the pattern) is which field. Several may be one field: Ruby takes the last that
    /// took part.
    fields: Vec<(usize, u16)>,
    time: Option<TimeField<u16>>,
}

impl Groups {
    /// Compiles; `names` gets the fields' names.
    pub(super) fn new(
        pattern: &str,
        time: &TimeKey,
        default_zone: &str,
        names: &mut Vec<String>,
        doubts: &mut Vec<String>,
    ) -> Result<Self, String> {
        let pattern = Pattern::new(pattern)?;
        let mut fields = Vec::new();
        for (group, name) in pattern.names().into_iter().enumerate() {
            let Some(name) = name else { continue };
            let field = names.iter().position(|known| *known == name);
            let field = field.unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            let field = u16::try_from(field).map_err(|_| "it has too many groups".to_owned())?;
            fields.push((group, field));
        }
        if fields.is_empty() {
            return Err("it has no named group `(?<name>…)`, of which fields are made".to_owned());
        }
        // One field's groups beside each other, in the order of the pattern.
        fields.sort_by_key(|(_, field)| *field);
        let key = time.key.as_deref().unwrap_or(TIME);
        let declared = time.key.is_some() || time.format.is_some() || time.zone.is_some();
        let time = match names.iter().position(|name| name == key) {
            Some(field) => Some(TimeField::new(field as u16, time, default_zone)?),
            None if declared => {
                doubts.push(format!(
                    "no group is called `{key}`, so no time is read from the records"
                ));
                None
            }
            None => None,
        };
        Ok(Self {
            pattern,
            fields,
            time,
        })
    }

    pub(super) fn parse(
        &self,
        text: &[u8],
        now_ns: i64,
        record: &mut Record,
    ) -> Result<(), &'static str> {
        let mut groups = std::mem::take(&mut record.work.groups);
        let found = self.pattern.find_groups(text, &mut groups);
        if let Ok(true) = found {
            self.take(&groups, text, now_ns, record);
        }
        record.work.groups = groups;
        match found {
            Ok(true) => Ok(()),
            Ok(false) => Err("regexp: no match"),
            Err(_) => Err("regexp: too hard"),
        }
    }

    fn take(
        &self,
        groups: &[Option<(usize, usize)>],
        text: &[u8],
        now_ns: i64,
        record: &mut Record,
    ) {
        for same in self.fields.chunk_by(|a, b| a.1 == b.1) {
            let took_part = |(group, field): &(usize, u16)| {
                let range = groups.get(*group).copied().flatten()?;
                Some((range, *field))
            };
            let Some(((start, end), field)) = same.iter().rev().find_map(took_part) else {
                continue;
            };
            if let Some(time) = &self.time
                && time.which == field
                && time.read(&text[start..end], now_ns, record)
            {
                continue;
            }
            record.push(field, text_value(start, end));
        }
    }
}
