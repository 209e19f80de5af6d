//! What commands tell people: the answer on standard output, everything else on standard error.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::exit::{Failure, Outcome};

/// Says something beside the answer. Where standard error is closed or full, nobody hears it, and the work goes on.
pub fn say(line: impl Display) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Prints the answer. A reader that has gone (`| head`) has heard enough; an answer that could not be written is a failure.
pub fn answer(text: impl Display) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::usage(format!(
            "the answer could not be written to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}
