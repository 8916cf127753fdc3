//! The figures as texts: tables to read, CSV to compute with.

use std::fmt::Write;

use super::harness::{Figures, Memory};

const HEADER: &str =
    "what,instructions,gets_per_s,get_us,get_us_safepoints,objects,plain_bytes,stored_bytes,\
                      sandbox_bytes,plain_resident_bytes,stored_resident_bytes,loaded_resident_bytes";
/// The process grows by whole pages: with fewer objects that says little.
const RESIDENT_OBJECTS_MIN: u32 = 1000;

/// In Markdown: gets, then memory for each kind of object.
pub fn tables(figures: &Figures) -> String {
    let mut text = String::from(
        "Gets of one node on one thread, without network and disk\n\n\
         | object | instructions | gets per second | µs per get | safepoints: µs per get |\n\
         | --- | --: | --: | --: | --: |\n",
    );
    for speed in &figures.speeds {
        let instructions = grouped(speed.instructions.into());
        let (gets, safepoints) = (grouped(speed.gets_per_s.round() as u64), time(speed.safepoints_us));
        put(&mut text, format_args!("| {} | {instructions} | {gets} ", speed.what));
        put(&mut text, format_args!("| {} | {safepoints} |\n", time(Some(speed.get_us))));
    }
    for kind in kinds(&figures.memories) {
        put(
            &mut text,
            format_args!(
                "\nBytes per object: {kind}\n\n\
                 | objects | plain value | stored | sandbox | plain value, resident | stored, resident \
                 | loaded, resident |\n\
                 | --: | --: | --: | --: | --: | --: | --: |\n"
            ),
        );
        for memory in figures.memories.iter().filter(|memory| memory.kind == kind) {
            let Memory { objects, plain_bytes, stored_bytes, sandbox_bytes, .. } = memory;
            let resident = |bytes: Option<f64>| match bytes {
                Some(bytes) if *objects >= RESIDENT_OBJECTS_MIN => grouped(bytes.round() as u64),
                _ => "-".to_string(),
            };
            put(
                &mut text,
                format_args!(
                    "| {} | {plain_bytes:.0} | {stored_bytes:.0} | {} | {} | {} | {} |\n",
                    grouped((*objects).into()),
                    grouped(sandbox_bytes.round() as u64),
                    resident(memory.plain_resident),
                    resident(memory.stored_resident),
                    resident(memory.loaded_resident)
                ),
            );
        }
    }
    text
}

/// A line for each get rate, then one for each number of objects. Fields without a meaning are empty.
pub fn csv(figures: &Figures) -> String {
    let mut text = format!("{HEADER}\n");
    let field = |number: Option<f64>| number.map_or(String::new(), |number| format!("{number:.3}"));
    for speed in &figures.speeds {
        let (what, instructions) = (speed.what.replace(',', ""), speed.instructions);
        let safepoints = field(speed.safepoints_us);
        put(
            &mut text,
            format_args!(
                "{what},{instructions},{:.0},{:.3},{safepoints},,,,,,,\n",
                speed.gets_per_s, speed.get_us
            ),
        );
    }
    for memory in &figures.memories {
        let Memory { kind, objects, plain_bytes, stored_bytes, sandbox_bytes, .. } = memory;
        let residents = [memory.plain_resident, memory.stored_resident, memory.loaded_resident];
        let residents = residents.map(|bytes| bytes.map_or(String::new(), |bytes| format!("{bytes:.0}")));
        put(
            &mut text,
            format_args!(
                "{kind},,,,,{objects},{plain_bytes:.1},{stored_bytes:.1},{sandbox_bytes:.1},{}\n",
                residents.join(",")
            ),
        );
    }
    text
}

/// In the order in which they were measured.
pub fn kinds(memories: &[Memory]) -> Vec<&'static str> {
    let mut kinds: Vec<&str> = memories.iter().map(|memory| memory.kind).collect();
    kinds.dedup();
    kinds
}

/// With a comma before each three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds, with as many digits as mean something.
pub fn time(us: Option<f64>) -> String {
    match us {
        None => "-".to_string(),
        Some(us) if us < 100.0 => format!("{us:.2}"),
        Some(us) => grouped(us.round() as u64),
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments) {
    text.write_fmt(arguments).expect("writing to memory does not fail");
}
