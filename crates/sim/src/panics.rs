//! Where a panic within a simulation happened: its text alone rarely says.
//!
//! A run catches panics and reports them as broken promises. [`watch`] has the program note the place instead of
//! printing it amid the progress of other runs; panics elsewhere are printed as ever.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{catch_unwind, AssertUnwindSafe};

thread_local! {
    /// `Some` while a simulation runs on this thread; the place of its last panic.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes the places of panics from now on, in the whole process.
pub fn watch() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map_or(String::new(), |place| format!(" at {place}"));
        let is_noted = PLACE.with_borrow_mut(|noted| noted.as_mut().map(|noted| *noted = place)).is_some();
        if !is_noted {
            usual(panic);
        }
    }));
}

/// What `run` returns. Errors: the text of its panic, and where it was if [`watch`] was called.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let outer = PLACE.replace(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let place = PLACE.replace(outer).unwrap_or_default();
    outcome.map_err(|panic| text_of(&*panic) + &place)
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a text".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_place() {
        watch();
        let number = 7;
        let text = caught(|| assert!(number < 3, "{number} is too many")).unwrap_err();
        assert!(text.starts_with("7 is too many at "), "{text}");
        assert!(text.contains("panics.rs:"), "{text}");
        assert_eq!(caught(|| 5), Ok(5));
        let outer = caught(|| {
            let _ = caught(|| panic!("inner"));
            panic!("outer");
        });
        assert!(outer.unwrap_err().starts_with("outer at "));
    }
}
