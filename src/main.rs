//! The `tidings` program. Floor 8.

mod cli;

use std::{
    io::{self, Write},
    process::ExitCode,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever has closed the other end of the pipe does not want to know.
            writeln!(io::stderr(), "tidings: {}", cli::describe(&error)).ok();
            ExitCode::FAILURE
        }
    }
}
