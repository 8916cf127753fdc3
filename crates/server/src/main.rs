//! The one binary, `oort`.

use std::process::ExitCode;

fn main() -> ExitCode {
    oort::cli::main()
}
