//! A small seeded mutator for fuzz targets that are plain functions, on stable Rust.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer inputs find nothing that shorter ones do not.
const MAX_LEN: usize = 32 << 10;

/// What parsers trip over.
const TOKENS: &[&str] = &[
    "",
    "\0",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    ";",
    "/",
    ".",
    "-",
    "null",
    "true",
    "0",
    "-1",
    "65536",
    "4294967296",
    "1e400",
    "\\u0000",
    "\\ud800",
    "\u{fffd}",
    "::",
    "::ffff:1.2.3.4",
    "0.0.0.0/0",
    "%eth0",
    "=",
    "&a ",
    "*a",
    "<<: ",
    "|\n",
    "---\n",
    "- ",
    "# ",
];

/// Files of `testdata/corpus/<name>/` of the crate under test, sorted by name.
pub(crate) fn corpus(crate_dir: &str, name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(crate_dir).join("testdata/corpus").join(name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds the committed corpus", dir.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Runs the target over the corpus, then over mutations of it for `time`. The seed is fixed, so a longer run repeats a
/// shorter one; the input that broke the target is printed, to be committed to the corpus.
pub(crate) fn run(corpus: &[Vec<u8>], time: Duration, target: impl Fn(&[u8])) {
    let check = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
            eprintln!("this input broke the target: {}", input.escape_ascii());
            resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|input| check(input));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let end = Instant::now() + time;
    let mut runs = 0_u64;
    while Instant::now() < end {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, corpus, &mut random);
        }
        input.truncate(MAX_LEN);
        check(&input);
        runs += 1;
    }
    println!("{runs} mutations of {} inputs", corpus.len());
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let span = at..(at + random.below(32)).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.below(256) as u8,
        2 => drop(input.drain(span)),
        3 => {
            let copy = input[span].to_vec();
            input.splice(at..at, copy);
        }
        4 => input.truncate(at),
        5 => {
            let token = TOKENS[random.below(TOKENS.len())].bytes();
            input.splice(span, token);
        }
        6 => {
            let other = &corpus[random.below(corpus.len())];
            input.truncate(at);
            input.extend(&other[random.below(other.len() + 1)..]);
        }
        _ => input.insert(at, random.below(256) as u8),
    }
}

/// xorshift64*: enough to pick places.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % bound
    }
}
