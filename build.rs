//! Leave the unwind tables out of what is released: a panic aborts, and nobody unwinds.
//!
//! They are a seventh of the program. Only of the release builds, and of the program alone: a test unwinds from its panics.
//! rustc has no option that would do it for one profile.

use std::env;
use std::fs;
use std::path::PathBuf;

/// The C runtime's own first and last bytes of the table stay: its code refers to them.
const SCRIPT: &str = "\
SECTIONS { /DISCARD/ : {
    *(EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .eh_frame) *(.gcc_except_table .gcc_except_table.*)
} }
INSERT BEFORE .text;
";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|is| is == value);
    // Another target may have a linker of its own, which takes other arguments.
    let targets = ["x86_64-unknown-linux-musl", "x86_64-unknown-linux-gnu"];
    if is("PROFILE", "release") && targets.into_iter().any(|target| is("TARGET", target)) {
        let script = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("no-unwinding.ld");
        fs::write(&script, SCRIPT).expect("cargo made the folder for it");
        println!("cargo::rustc-link-arg-bin=handoff-run=-Wl,-T,{}", script.display());
        println!("cargo::rustc-link-arg-bin=handoff-run=-Wl,--no-eh-frame-hdr");
    }
}
