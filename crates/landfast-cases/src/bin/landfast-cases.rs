//! Does one case so many times: what callgrind counts. `landfast-cases NAME TIMES`; without arguments, the names with
//! their numbers of repeats.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use landfast_cases::CASES;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            let lines = CASES.map(|case| format!("{} {}\n", case.name, case.repeats));
            match io::stdout().write_all(lines.concat().as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_nobody_reads) => ExitCode::FAILURE,
            }
        }
        [name, times] => {
            let case = CASES.iter().find(|case| case.name == name);
            let (Some(case), Ok(times)) = (case, times.parse::<u32>()) else {
                return ExitCode::from(2);
            };
            let mut work = (case.prepare)();
            (0..times).for_each(|_| work());
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}
